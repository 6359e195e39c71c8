//! A real moto server as AWS KMS: started on a free loopback port, gone when dropped or when the
//! test process dies, however it dies.
//!
//! Never skips: if the server cannot be made, the test fails and says why.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::venv;

/// Pinned exactly: moto's faults, which the tests know, change between versions.
const PACKAGES: [&str; 4] = [
    "moto==5.2.5",
    "flask==3.1.3",
    "flask-cors==6.0.5",
    "cryptography==50.0.2",
];

/// Ends with its standard input, so that no server outlives its test. (PR_SET_PDEATHSIG would end
/// it with the *thread* that started it.)
const SERVER: &str = "
import os, sys, threading
def watch():
    sys.stdin.buffer.read()
    os._exit(0)
threading.Thread(target=watch, daemon=True).start()
from moto.server import main
main(sys.argv[1:])
";

/// Region of keys that are created without one.
pub const REGION: &str = "eu-central-1";

/// A running server.
pub struct Moto {
    server: Server,
    home: tempfile::TempDir,
}

impl Moto {
    /// Starts a server with no keys.
    pub fn start() -> Self {
        let python = python();
        for _ in 0..5 {
            let address = free_address();
            let port = address.port().to_string();
            let arguments = ["-c", SERVER, "-H", "127.0.0.1", "-p", &port];
            if let Some(server) = Server::start(&python, &arguments, address) {
                return Self {
                    server,
                    home: tempfile::tempdir().unwrap(),
                };
            }
        }
        panic!("moto did not start; its output stands above");
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// The whole environment of a process that is to use this server as AWS KMS. Meant to stand
    /// alone (`env_clear`), so that nothing of the host's own AWS configuration is used.
    pub fn env(&self) -> Vec<(String, String)> {
        self.env_at(&self.url())
    }

    /// The same, with a proxy's URL in the server's place.
    pub fn env_at(&self, url: &str) -> Vec<(String, String)> {
        environment(self.home.path(), url)
    }

    /// Creates a symmetric key and returns its ARN.
    pub fn create_key(&self) -> String {
        self.create_key_in(REGION)
    }

    /// Creates a symmetric key in `region` and returns its ARN.
    pub fn create_key_in(&self, region: &str) -> String {
        let answer = self.kms(region, "CreateKey", &json!({}));
        answer["KeyMetadata"]["Arn"]
            .as_str()
            .expect("an ARN")
            .to_owned()
    }

    /// Gives a key the alias `alias/NAME`.
    pub fn create_alias(&self, name: &str, arn: &str) {
        let body = json!({"AliasName": format!("alias/{name}"), "TargetKeyId": arn});
        self.kms(REGION, "CreateAlias", &body);
    }

    /// Calls any action of the KMS API. Panics unless it succeeds.
    pub fn kms(&self, region: &str, action: &str, body: &Value) -> Value {
        let scope = format!("test/20260101/{region}/kms/aws4_request");
        let request = format!(
            "POST / HTTP/1.1\r\nHost: kms.{region}.amazonaws.com\r\nConnection: close\r\n\
             Content-Type: application/x-amz-json-1.1\r\nX-Amz-Target: TrentService.{action}\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.to_string().len()
        );
        let mut stream = TcpStream::connect(self.address()).expect("moto listens");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        assert!(head.starts_with("HTTP/1.1 200"), "{action}: {answer}");
        serde_json::from_str(body).unwrap_or(Value::Null)
    }
}

/// The environment of a process that is to find AWS KMS at `url`, with credentials that any
/// emulator takes, and nothing of the host's.
pub fn environment(home: &Path, url: &str) -> Vec<(String, String)> {
    let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    vec![
        set("PATH", &std::env::var("PATH").unwrap_or_default()),
        set("HOME", home.to_str().expect("a UTF-8 path")),
        set("NO_PROXY", "*"),
        set("AWS_EC2_METADATA_DISABLED", "true"),
        set("AWS_ACCESS_KEY_ID", "AKIATEST"),
        set("AWS_SECRET_ACCESS_KEY", "not-a-secret"),
        set("AWS_REGION", REGION),
        set("AWS_ENDPOINT_URL_KMS", url),
    ]
}

/// A Python program that serves until it is dropped.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
}

impl Server {
    /// Starts it and waits until it takes connections; `None` if it ended before.
    pub fn start(python: &Path, arguments: &[&str], address: SocketAddr) -> Option<Self> {
        let child = Command::new(python)
            .args(arguments)
            .env_remove("HTTP_PROXY")
            .env_remove("http_proxy")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {}: {e}", python.display()));
        let mut server = Self { child, address };
        let start = Instant::now();
        while TcpStream::connect(address).is_err() {
            if server.child.try_wait().unwrap().is_some() {
                return None;
            }
            assert!(
                start.elapsed() < Duration::from_secs(120),
                "the server does not listen"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A loopback address that was free a moment ago.
pub fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap()
}

/// The Python of a virtual environment with moto in it.
pub fn python() -> PathBuf {
    venv::python("moto", &PACKAGES)
}
