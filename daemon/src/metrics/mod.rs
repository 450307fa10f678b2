//! Prometheus metrics on `--metrics ADDR`.
//!
//! - [`text`]: the exposition format. - [`collect`]: what is told, read from counters that the cores keep anyway.
//! - [`pools`]: the part of pools and replicas.
//! - this file: a server of exactly one page over HTTP/1.1.

mod collect;
mod nexuses;
mod pools;
mod text;

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::engine::Engine;

/// A request's head is a few hundred bytes; more is nonsense.
const MAX_HEAD_BYTES: usize = 8 << 10;

/// Scrapers come one at a time; more wait.
const MAX_CONNECTIONS: usize = 16;

/// For the request to arrive and the answer to leave.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves until told to stop.
pub(crate) async fn serve(listener: TcpListener, engine: Arc<Engine>, mut stopped: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.wait_for(|stop| *stop) => return,
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, most likely: others will close theirs.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        // The semaphore is never closed.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let engine = engine.clone();
        tokio::spawn(async move {
            // Whoever stalls or goes away gets no page.
            let _ = timeout(PATIENCE, answer(stream, &engine)).await;
            drop(place);
        });
    }
}

async fn answer(mut stream: TcpStream, engine: &Engine) -> std::io::Result<()> {
    let mut head = Vec::with_capacity(1024);
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        if head.len() >= MAX_HEAD_BYTES {
            return respond(&mut stream, "431 Request Header Fields Too Large", "", "too large\n").await;
        }
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split(' ');
    match (words.next(), words.next().map(|path| path.split('?').next().unwrap_or(path))) {
        (Some("GET"), Some("/metrics")) => {
            let page = collect::page(engine).await;
            respond(&mut stream, "200 OK", "text/plain; version=0.0.4; charset=utf-8", &page).await
        }
        (Some("GET"), Some("/")) => {
            respond(&mut stream, "200 OK", "text/plain", "metrics are at /metrics\n").await
        }
        (Some("GET"), _) => respond(&mut stream, "404 Not Found", "text/plain", "look at /metrics\n").await,
        (Some("HEAD" | "POST" | "PUT" | "DELETE" | "OPTIONS" | "PATCH"), _) => {
            respond(&mut stream, "405 Method Not Allowed", "text/plain", "only GET\n").await
        }
        _ => respond(&mut stream, "400 Bad Request", "text/plain", "this is no HTTP\n").await,
    }
}

async fn respond(stream: &mut TcpStream, status: &str, kind: &str, body: &str) -> std::io::Result<()> {
    let len = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}
