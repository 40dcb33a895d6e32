//! What websites send.

use crate::known;

/// The known pixel.
pub(crate) const PIXEL: &str = "6010000000001";

/// What a browser sends beside the request itself: 10 lines and `Host`.
const BROWSER: &str = "Host: pixel.shop.example\r\n\
    Connection: keep-alive\r\n\
    sec-ch-ua: \"Chromium\";v=\"142\", \"Google Chrome\";v=\"142\", \"Not_A Brand\";v=\"99\"\r\n\
    sec-ch-ua-mobile: ?0\r\n\
    User-Agent: Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) \
    Chrome/142.0.0.0 Safari/537.36\r\n\
    Accept: image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8\r\n\
    Sec-Fetch-Site: same-site\r\n\
    Sec-Fetch-Mode: no-cors\r\n\
    Referer: https://www.shop.example/checkout/thanks?utm_source=news&order=81723\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Accept-Language: en-GB,en;q=0.9,de;q=0.8\r\n";

/// The longest body that is taken by default.
const LARGE_BYTES: usize = 60_000;

/// What is sent, by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// The pixel.
    Get,
    /// `navigator.sendBeacon` with a string.
    Beacon,
    /// `fetch` with JSON.
    Json,
    /// A form.
    Form,
    /// Pixels, each tenth of an id that nobody knows.
    Mix,
    /// The longest events.
    Large,
    /// The pixel with this many parameters of its own.
    Parameters(usize),
    /// Pixels spread over so many.
    Spread(u64),
}

impl Kind {
    /// The requests, to be sent in turn.
    pub(crate) fn requests(self) -> Vec<Vec<u8>> {
        let form = format!("id={PIXEL}&value=24.99&currency=EUR&order=81723");
        let json = format!("{{\"id\":\"{PIXEL}\",\"value\":\"24.99\",\"currency\":\"EUR\",\"order\":\"81723\"}}");
        match self {
            Kind::Get => vec![get(&form)],
            Kind::Beacon => vec![post("text/plain;charset=UTF-8", &form)],
            Kind::Json => vec![post("application/json", &json)],
            Kind::Form => vec![post("application/x-www-form-urlencoded", &form)],
            Kind::Mix => {
                let mut requests = vec![get(&form); 9];
                requests.push(get(&form.replace(PIXEL, "6010000000002")));
                requests
            }
            Kind::Large => vec![post("text/plain;charset=UTF-8", &format!("{form}&note={}", "x".repeat(LARGE_BYTES)))],
            Kind::Parameters(count) => {
                let extra: String = (0..count).map(|index| format!("&cd%5Bp{index}%5D=value%20{index}")).collect();
                vec![get(&(form + &extra))]
            }
            Kind::Spread(count) => known::ids(count).map(|id| get(&form.replace(PIXEL, &id))).collect(),
        }
    }

    /// Whether nginx's `empty_gif` takes it.
    pub(crate) fn is_get(self) -> bool {
        matches!(self, Kind::Get | Kind::Mix | Kind::Parameters(_) | Kind::Spread(_))
    }
}

fn get(query: &str) -> Vec<u8> {
    format!("GET /offsite_event.php?{query} HTTP/1.1\r\n{BROWSER}\r\n").into_bytes()
}

fn post(kind: &str, body: &str) -> Vec<u8> {
    let lines =
        format!("Content-Type: {kind}\r\nOrigin: https://www.shop.example\r\nContent-Length: {}\r\n", body.len());
    format!("POST /offsite_event.php HTTP/1.1\r\n{BROWSER}{lines}\r\n{body}").into_bytes()
}
