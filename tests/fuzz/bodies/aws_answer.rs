//! What AWS KMS, or whatever answers in its place, says.
//!
//! The provider is the real one; a thread here is the endpoint. Where that listens is read from
//! `AWS_ENDPOINT_URL_KMS`, as the provider does: an address of the loopback network that nobody
//! else uses.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use secretfs::crypto::SecretKey;
use secretfs::kms::{EncryptionContext, KeyService as _, KeyUri, Kms, KmsSettings, connect};

const KEY: &str =
    "aws-kms://arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

#[derive(Default)]
struct Answer {
    status: u16,
    kind: &'static str,
    body: Vec<u8>,
}

struct World {
    kms: Kms,
    uri: KeyUri,
    answer: Arc<Mutex<Answer>>,
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let endpoint = std::env::var("AWS_ENDPOINT_URL_KMS").expect("AWS_ENDPOINT_URL_KMS is set");
        let address = endpoint.trim_start_matches("http://");
        let listener = TcpListener::bind(address).expect("an endpoint");
        let answer = Arc::new(Mutex::new(Answer::default()));
        let given = Arc::clone(&answer);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let given = Arc::clone(&given);
                std::thread::spawn(move || serve(&stream, &given));
            }
        });
        let settings = KmsSettings {
            // Whatever calls for another attempt would take its time.
            attempt_timeout: Duration::from_millis(300),
            total_timeout: Duration::from_millis(300),
            ..KmsSettings::default()
        };
        World {
            kms: connect(&settings),
            uri: KEY.parse().expect("a URI"),
            answer,
        }
    })
}

/// Answers one connection's requests, until it ends.
fn serve(stream: &TcpStream, answer: &Mutex<Answer>) -> Option<()> {
    let mut requests = BufReader::new(stream);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if requests.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let line = line.trim().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            if line.is_empty() {
                break;
            }
        }
        requests
            .by_ref()
            .take(length)
            .read_to_end(&mut Vec::new())
            .ok()?;
        let mut told;
        {
            let answer = answer.lock().unwrap_or_else(PoisonError::into_inner);
            let (status, kind) = (answer.status, answer.kind);
            told = format!(
                "HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
                answer.body.len()
            )
            .into_bytes();
            told.extend(&answer.body);
        }
        let mut stream = stream;
        stream.write_all(&told).ok()?;
    }
}

pub(super) fn run(input: &[u8]) {
    let Some((selector, body)) = input.split_first() else {
        return;
    };
    let world = world();
    *world.answer.lock().unwrap_or_else(PoisonError::into_inner) = Answer {
        status: [200, 400, 403, 404][usize::from(selector >> 2) % 4],
        kind: ["application/x-amz-json-1.1", "text/xml"][usize::from(selector >> 4) % 2],
        body: body.to_vec(),
    };
    let context = EncryptionContext::master_key("0123", 1);
    let key = SecretKey::filled_by(|key| key.fill(3));
    let error = match selector % 4 {
        0 => match world.kms.wrap(&world.uri, &key, &context) {
            Ok(wrapped) => return assert!((1..=6144).contains(&wrapped.blob.len())),
            Err(error) => error,
        },
        1 => match world.kms.describe(&world.uri) {
            Ok(description) => return assert!(world.uri.as_str().ends_with(&description.key_id)),
            Err(error) => error,
        },
        _ => match world.kms.unwrap(&world.uri, &[1; 100], &context) {
            Ok(_) => return assert!(selector >> 2 & 3 == 0, "only an answer holds a key"),
            Err(error) => error,
        },
    };
    // One line, fit for a terminal, whatever was sent.
    let line = error.to_string();
    assert!(
        !line.chars().any(char::is_control) && line.len() < 2000,
        "{line:?}"
    );
}
