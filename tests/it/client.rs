//! A small blocking HTTP/1.1 client on a raw socket, so that tests see every byte and choose each of theirs.
//!
//! Keep-alive; `Content-Length`, chunked and read-to-the-end bodies. No redirects, no retries, no pools.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);
const MAX_BODY_BYTES: u64 = 64 * 1024 * 1024;

/// One connection.
pub struct Client<S = TcpStream> {
    stream: BufReader<S>,
}

/// A whole answer.
#[derive(Debug)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Header lines in order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, unchunked.
    pub body: Vec<u8>,
}

impl Reply {
    /// The first header of this (lower-case) name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// `X-Pixelgate-Reason`.
    pub fn reason(&self) -> Option<&str> {
        self.header("x-pixelgate-reason")
    }

    /// `X-Pixelgate-Record-Id`.
    pub fn record_id(&self) -> Option<&str> {
        self.header("x-pixelgate-record-id")
    }
}

impl Client {
    /// Connects once.
    pub fn connect(address: SocketAddr) -> io::Result<Client> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Client { stream: BufReader::new(stream) })
    }

    /// The same connection once more, for another thread. Only one of them may read.
    pub fn another(&self) -> io::Result<Client> {
        Ok(Client { stream: BufReader::new(self.stream.get_ref().try_clone()?) })
    }

    /// Says that no more will be sent; answers may still come.
    pub fn half_close(&self) -> io::Result<()> {
        self.stream.get_ref().shutdown(std::net::Shutdown::Write)
    }
}

impl<S: Read + Write> Client<S> {
    /// On a connection that is there.
    pub fn over(stream: S) -> Client<S> {
        Client { stream: BufReader::new(stream) }
    }

    /// The connection.
    pub fn stream(&self) -> &S {
        self.stream.get_ref()
    }

    /// `GET` with `Host` only.
    pub fn get(&mut self, target: &str) -> io::Result<Reply> {
        self.send(format!("GET {target} HTTP/1.1\r\nHost: gateway.test\r\n\r\n").as_bytes())?;
        self.reply()
    }

    /// `POST` of a body with a content type.
    pub fn post(&mut self, target: &str, content_type: &str, body: &str) -> io::Result<Reply> {
        let length = body.len();
        let head = format!("POST {target} HTTP/1.1\r\nHost: gateway.test\r\nContent-Type: {content_type}\r\n");
        self.send(format!("{head}Content-Length: {length}\r\n\r\n{body}").as_bytes())?;
        self.reply()
    }

    /// Writes bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Reads the next answer to a request that was no `HEAD`.
    pub fn reply(&mut self) -> io::Result<Reply> {
        let (status, headers) = self.head()?;
        let mut reply = Reply { status, headers, body: Vec::new() };
        if matches!(status, 204 | 304) {
            return Ok(reply);
        }
        if reply.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            self.chunked(&mut reply.body)?;
        } else if let Some(length) = reply.header("content-length") {
            let length: u64 = length.parse().map_err(|_| invalid("content-length"))?;
            self.exactly(length, &mut reply.body)?;
        } else {
            self.stream.by_ref().take(MAX_BODY_BYTES).read_to_end(&mut reply.body)?;
        }
        Ok(reply)
    }

    /// Reads the next answer's head: all there is after `HEAD`.
    pub fn head(&mut self) -> io::Result<(u16, Vec<(String, String)>)> {
        loop {
            let first = self.line()?;
            let status = first.split(' ').nth(1).and_then(|code| code.parse::<u16>().ok());
            let status = status.ok_or_else(|| invalid(&first))?;
            let mut headers = Vec::new();
            loop {
                let line = self.line()?;
                if line.is_empty() {
                    break;
                }
                let (name, value) = line.split_once(':').ok_or_else(|| invalid(&line))?;
                headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            }
            if status >= 200 {
                return Ok((status, headers));
            }
        }
    }

    fn chunked(&mut self, body: &mut Vec<u8>) -> io::Result<()> {
        while let Some(chunk) = self.chunk()? {
            body.extend(chunk);
        }
        Ok(())
    }

    /// Reads the next chunk of a chunked body; `None` at its end.
    pub fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let size = self.line()?;
        let size = u64::from_str_radix(size.trim(), 16).map_err(|_| invalid(&size))?;
        let mut chunk = Vec::new();
        self.exactly(size, &mut chunk)?;
        let end = self.line()?;
        if !end.is_empty() {
            return Err(invalid(&end));
        }
        Ok((size > 0).then_some(chunk))
    }

    fn exactly(&mut self, bytes: u64, body: &mut Vec<u8>) -> io::Result<()> {
        if bytes > MAX_BODY_BYTES || self.stream.by_ref().take(bytes).read_to_end(body)? as u64 != bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stream.by_ref().take(64 * 1024).read_line(&mut line)?;
        if !line.ends_with("\r\n") {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.truncate(line.len() - 2);
        Ok(line)
    }
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not HTTP/1.1: {text:?}"))
}
