// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! An HTTP server on loopback whose answers a test decides, and which records the requests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// A request. The names of its headers are in lower case.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub(crate) fn authorization(&self) -> Option<&str> {
        self.header("authorization")
    }

    /// Returns the first byte that the request asks for.
    pub(crate) fn start(&self) -> Option<usize> {
        let range = self.header("range")?;
        range
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse()
            .ok()
    }
}

/// The end of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Complete,
    /// The connection closes after this many bytes.
    Cut(usize),
    /// Nothing comes after this many bytes.
    Stall(usize),
    /// Without a length: the end of the connection is the end.
    Unsized,
}

#[derive(Debug, Clone)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    end: End,
    after: Duration,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl AsRef<[u8]>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.as_ref().to_vec(),
            end: End::Complete,
            after: Duration::ZERO,
        }
    }

    /// Returns a blob, from the byte on that the request asks for.
    pub(crate) fn range(request: &Request, blob: &[u8]) -> Self {
        match request.start() {
            None => Self::new(200, blob),
            Some(start) => Self::new(206, &blob[start..]).with(
                "content-range",
                &format!("bytes {start}-{}/{}", blob.len() - 1, blob.len()),
            ),
        }
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sends it after this time.
    pub(crate) fn after(mut self, after: Duration) -> Self {
        self.after = after;
        self
    }

    pub(crate) fn end(mut self, end: End) -> Self {
        self.end = end;
        self
    }
}

/// A running server.
pub(crate) struct Server {
    /// `127.0.0.1:PORT`.
    pub(crate) address: String,
    requests: Arc<Mutex<Vec<Request>>>,
    task: JoinHandle<()>,
}

impl Server {
    /// Starts a server that answers by the request and the number of requests before it.
    pub(crate) async fn start(
        answer: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::with_tls(None, answer).await
    }

    pub(crate) async fn with_tls(
        tls: Option<TlsAcceptor>,
        answer: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (answer, recorded) = (Arc::new(answer), requests.clone());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, recorded, tls) = (answer.clone(), recorded.clone(), tls.clone());
                tokio::spawn(async move {
                    let answer = move |request: Request| {
                        let mut recorded = recorded.lock().unwrap();
                        let reply = answer(&request, recorded.len());
                        recorded.push(request);
                        reply
                    };
                    match tls {
                        None => serve(stream, answer).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => serve(stream, answer).await,
                            Err(_) => None,
                        },
                    }
                });
            }
        });
        Self {
            address,
            requests,
            task,
        }
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    pub(crate) fn targets(&self) -> Vec<String> {
        self.requests()
            .into_iter()
            .map(|request| request.target)
            .collect()
    }

    pub(crate) fn authorizations(&self) -> Vec<Option<String>> {
        let requests = self.requests();
        requests
            .iter()
            .map(|request| request.authorization().map(str::to_owned))
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: impl Fn(Request) -> Reply,
) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
        if head[0] == 0x16 {
            let answer = b"HTTP/1.0 400 Bad Request\r\n\r\nthis is no TLS server";
            stream.write_all(answer).await.ok()?;
            return stream.shutdown().await.ok();
        }
    }
    let head = String::from_utf8(head).ok()?;
    let mut lines = head.lines();
    let mut words = lines.next()?.split(' ');
    let mut request = Request {
        method: words.next()?.to_owned(),
        target: words.next()?.to_owned(),
        ..Request::default()
    };
    for line in lines {
        if let Some((name, value)) = line.split_once(": ") {
            request
                .headers
                .insert(name.to_lowercase(), value.to_owned());
        }
    }
    let length = request
        .header("content-length")
        .and_then(|length| length.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await.ok()?;
    request.body = String::from_utf8(body).ok()?;
    let reply = answer(request);
    tokio::time::sleep(reply.after).await;
    let mut text = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", reply.status);
    if reply.end != End::Unsized {
        text += &format!("content-length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        text += &format!("{name}: {value}\r\n");
    }
    text += "\r\n";
    stream.write_all(text.as_bytes()).await.ok()?;
    let sent = match reply.end {
        End::Cut(count) | End::Stall(count) => &reply.body[..count],
        End::Complete | End::Unsized => &reply.body,
    };
    stream.write_all(sent).await.ok()?;
    stream.flush().await.ok()?;
    if let End::Stall(_) = reply.end {
        std::future::pending::<()>().await;
    }
    stream.shutdown().await.ok()
}
