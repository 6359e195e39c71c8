//! A server between secretfs and KMS that forwards, refuses in AWS's own words, or misbehaves on
//! the wire, and remembers what it was asked.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

/// What the proxy does with a request.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Passes it on, and the answer back.
    Forward,
    /// An error as AWS KMS sends it: JSON with `__type`, under a status.
    Error(u16, &'static str, &'static str),
    /// Any status, content type and body.
    Raw(u16, &'static str, String),
    /// Takes the request and says nothing.
    Hang,
    /// Takes the request and resets the connection.
    Reset,
    /// Begins a good answer and closes the connection in the middle of it.
    Half,
}

/// A request to KMS, as the proxy saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// `Encrypt`, `Decrypt`, ...; the path, if it was no KMS request.
    pub action: String,
    /// `KeyId`, as it was sent.
    pub key_id: Option<String>,
    /// `EncryptionContext`.
    pub context: BTreeMap<String, String>,
    /// The region for which the request was signed.
    pub region: String,
    /// All that it said.
    pub body: Value,
}

struct State {
    always: Answer,
    first: VecDeque<Answer>,
    seen: Vec<Seen>,
    /// How often it was told otherwise; lets go of what hangs.
    changes: usize,
    stopped: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    upstream: Option<SocketAddr>,
}

/// A running proxy.
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Proxy {
    /// A proxy before `upstream`, which forwards until it is told otherwise.
    pub fn before(upstream: SocketAddr) -> Self {
        Self::start(Ipv4Addr::LOCALHOST, Some(upstream), Answer::Forward)
    }

    /// The same, at an address that is not loopback.
    pub fn at(address: Ipv4Addr, upstream: SocketAddr) -> Self {
        Self::start(address, Some(upstream), Answer::Forward)
    }

    /// A proxy before nothing, which always gives `answer`.
    pub fn always(answer: Answer) -> Self {
        Self::start(Ipv4Addr::LOCALHOST, None, answer)
    }

    fn start(at: Ipv4Addr, upstream: Option<SocketAddr>, always: Answer) -> Self {
        let listener = TcpListener::bind((at, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let state = State {
            always,
            first: VecDeque::new(),
            seen: Vec::new(),
            changes: 0,
            stopped: false,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            upstream,
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.state.lock().unwrap().stopped {
                    break;
                }
                let shared = Arc::clone(&serving);
                // A client that goes away is no concern of the proxy's.
                std::thread::spawn(move || stream.and_then(|stream| shared.serve(stream)));
            }
        });
        Self { shared, address }
    }

    /// Its URL, for `AWS_ENDPOINT_URL_KMS`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Gives `answer` from now on.
    pub fn set(&self, answer: Answer) {
        let mut state = self.shared.state.lock().unwrap();
        state.first.clear();
        state.always = answer;
        state.changes += 1;
        self.shared.changed.notify_all();
    }

    /// Gives `answer` to the next `times` requests, then goes on as before.
    pub fn set_times(&self, times: usize, answer: Answer) {
        self.shared
            .state
            .lock()
            .unwrap()
            .first
            .extend(vec![answer; times]);
    }

    /// What it was asked so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.state.lock().unwrap().seen.clone()
    }

    /// How often it was asked so far.
    pub fn count(&self) -> usize {
        self.shared.state.lock().unwrap().seen.len()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.state.lock().unwrap().stopped = true;
        self.shared.changed.notify_all();
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    /// Serves one request; every answer closes its connection.
    fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        let (head, body) = read_request(&stream)?;
        let answer = {
            let mut state = self.state.lock().unwrap();
            state.seen.push(seen(&head, &body));
            state
                .first
                .pop_front()
                .unwrap_or_else(|| state.always.clone())
        };
        match answer {
            Answer::Forward => {
                let upstream = self.upstream.expect("a proxy with something behind it");
                let mut upstream = TcpStream::connect(upstream)?;
                upstream.write_all(head.as_bytes())?;
                upstream.write_all(&body)?;
                io::copy(&mut upstream, &mut stream)?;
            }
            Answer::Error(status, code, message) => {
                let body = json!({"__type": code, "message": message, "Message": message});
                respond(
                    &mut stream,
                    status,
                    "application/x-amz-json-1.1",
                    &body.to_string(),
                )?;
            }
            Answer::Raw(status, kind, body) => respond(&mut stream, status, kind, &body)?,
            Answer::Hang => {
                let mut state = self.state.lock().unwrap();
                let changes = state.changes;
                while !state.stopped && state.changes == changes {
                    state = self
                        .changed
                        .wait_timeout(state, Duration::from_secs(60))
                        .unwrap()
                        .0;
                }
            }
            Answer::Reset => {
                let linger = nix::libc::linger {
                    l_onoff: 1,
                    l_linger: 0,
                };
                nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &linger)?;
            }
            Answer::Half => {
                let head = "HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.1\r\n";
                write!(
                    stream,
                    "{head}Content-Length: 1000\r\n\r\n{{\"KeyId\":\"arn:"
                )?;
                stream.shutdown(Shutdown::Both)?;
            }
        }
        Ok(())
    }
}

/// The request's head, with `Connection: close` in it, and its body.
fn read_request(stream: &TcpStream) -> io::Result<(String, Vec<u8>)> {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if line == "\r\n" {
            break;
        }
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
        if !lower.starts_with("connection:") {
            head.push_str(&line);
        }
    }
    head.push_str("Connection: close\r\n\r\n");
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok((head, body))
}

fn seen(head: &str, body: &[u8]) -> Seen {
    let header = |name: &str| {
        head.lines().find_map(|line| {
            let (n, value) = line.split_once(':')?;
            n.eq_ignore_ascii_case(name)
                .then(|| value.trim().to_owned())
        })
    };
    let action = header("x-amz-target").and_then(|t| Some(t.split_once('.')?.1.to_owned()));
    let path = head.split_whitespace().nth(1).unwrap_or_default();
    let scope = header("authorization").unwrap_or_default();
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    let context = json["EncryptionContext"]
        .as_object()
        .cloned()
        .unwrap_or_default();
    Seen {
        action: action.unwrap_or_else(|| path.to_owned()),
        key_id: json["KeyId"].as_str().map(str::to_owned),
        context: context
            .into_iter()
            .map(|(k, v)| (k, v.as_str().unwrap_or_default().to_owned()))
            .collect(),
        region: scope.split('/').nth(2).unwrap_or_default().to_owned(),
        body: json,
    }
}

fn respond(stream: &mut TcpStream, status: u16, kind: &str, body: &str) -> io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 {status} Status\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )
}
