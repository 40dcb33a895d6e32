//! The authority of the bench: answers at once, or never, from threads of the bench's own process.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

/// Pixels of each ad account.
pub(crate) const PER_ACCOUNT: usize = 100;

/// A listener for as long as the process lives.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    open: Arc<AtomicUsize>,
}

impl Upstream {
    /// Answers with what its target asks for: an ad account's list, or one pixel.
    pub(crate) fn prompt() -> Upstream {
        Upstream::start(|stream| serve(stream, || 0).unwrap_or_default())
    }

    /// The same; of each list that it gives, its first pixel has another name.
    pub(crate) fn changing() -> Upstream {
        static GIVEN: AtomicUsize = AtomicUsize::new(0);
        Upstream::start(|stream| serve(stream, || GIVEN.fetch_add(1, SeqCst)).unwrap_or_default())
    }

    /// Takes every request and answers none.
    pub(crate) fn hanging() -> Upstream {
        Upstream::start(|mut stream| while stream.read(&mut [0; 4096]).is_ok_and(|read| read > 0) {})
    }

    fn start(serve: fn(TcpStream)) -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, open) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&open);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let count = Arc::clone(&count);
                count.fetch_add(1, SeqCst);
                std::thread::spawn(move || {
                    serve(stream);
                    count.fetch_sub(1, SeqCst);
                });
            }
        });
        Upstream { address, open }
    }

    /// Connections that are open.
    pub(crate) fn open(&self) -> usize {
        self.open.load(SeqCst)
    }
}

fn serve(mut stream: TcpStream, shop: fn() -> usize) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut buffer, mut filled) = ([0; 16 << 10], 0);
    loop {
        let read = stream.read(&mut buffer[filled..])?;
        filled += read;
        if read == 0 {
            return Ok(());
        }
        let Some(head) = memchr::memmem::find(&buffer[..filled], b"\r\n\r\n") else { continue };
        let body = body(&String::from_utf8_lossy(&buffer[..head]), shop());
        filled = 0;
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json; charset=utf-8\r\n";
        stream.write_all(format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes())?;
    }
}

fn body(head: &str, shop: usize) -> String {
    let Some((_, rest)) = head.split_once("fb_ad_account_id=") else { return pixel(1, 0, 0) };
    let account: usize = rest.split(' ').next().unwrap_or_default().parse().unwrap_or(1);
    // All but the first: made once, as load is made on the same CPU.
    static REST: Mutex<BTreeMap<usize, Arc<str>>> = Mutex::new(BTreeMap::new());
    let make = || (1..PER_ACCOUNT).map(|number| format!(",{}", pixel(account, number, number))).collect::<String>();
    let rest = Arc::clone(REST.lock().unwrap().entry(account).or_insert_with(|| make().into()));
    format!("[{}{rest}]", pixel(account, 0, shop))
}

/// The id of an account's pixel.
pub(crate) fn id(account: usize, number: usize) -> String {
    format!("60{:011}", account * PER_ACCOUNT + number)
}

/// A pixel as the published API shows it, snippet and all.
fn pixel(account: usize, number: usize, shop: usize) -> String {
    let id = id(account, number);
    let snippet = "\\u003Cscript type=\\\"text/javascript\\\"\\u003Evar fb_param = {};".repeat(9);
    format!(
        "{{\"id\":\"{id}\",\"name\":\"Checkout of shop {shop}\",\"tag\":\"checkout\",\"status\":\"Active\",\
         \"creator\":\"{account} (a name)\",\"js_pixel\":\"{snippet}\"}}"
    )
}
