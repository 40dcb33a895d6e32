//! Whose request it is: the peer, or whom trusted proxies name in `X-Forwarded-For`.
//!
//! The header is walked from the right, the only end that a visitor can't write: each hop that is a trusted proxy
//! vouches for the one before it. What is not an address ends the walk at the last good hop. No work grows with the
//! header.

use std::net::{IpAddr, Ipv6Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use actix_web::HttpRequest;
use actix_web::http::header::{HeaderMap, HeaderValue, X_FORWARDED_FOR};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Most hops that are looked at: no real chain of proxies comes near it.
const MAX_HOPS: usize = 32;

/// `server.trusted_proxies`, and what was seen of those that should be in it.
#[derive(Debug)]
pub struct Proxies {
    trusted: Option<Vec<IpNet>>,
    untrusted_requests: AtomicU64,
    warned: AtomicBool,
}

/// Who sent a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Visitor {
    /// The address; IPv4 is never in an IPv6 dress.
    pub ip: Option<IpAddr>,
    /// The address is the visitor's own as far as the configuration tells, so that a limit may go by it.
    pub is_own: bool,
}

impl Proxies {
    /// `None`: the operator hasn't said; the header is ignored, and a peer that sends it may be a proxy.
    pub fn new(trusted: Option<Vec<IpNet>>) -> Proxies {
        Proxies { trusted, untrusted_requests: AtomicU64::new(0), warned: AtomicBool::new(false) }
    }

    /// Requests with the header while nobody said whom to trust.
    pub fn untrusted_requests(&self) -> u64 {
        self.untrusted_requests.load(Ordering::Relaxed)
    }

    /// Who sent this request. Once per request: it counts.
    pub fn visitor(&self, request: &HttpRequest) -> Visitor {
        let head = request.head();
        self.find(head.peer_addr.map(|peer| peer.ip()), &head.headers)
    }

    /// The same of a peer and its `X-Forwarded-For`.
    pub(super) fn find(&self, peer: Option<IpAddr>, forwarded: &impl Forwarded) -> Visitor {
        let peer = peer.map(|ip| ip.to_canonical());
        let own = Visitor { ip: peer, is_own: true };
        let Some(trusted) = &self.trusted else {
            if forwarded.lines() == 0 {
                return own;
            }
            self.untrusted_requests.fetch_add(1, Ordering::Relaxed);
            if !self.warned.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    "requests carry X-Forwarded-For, but server.trusted_proxies is not set: the header is ignored, \
                     events get the proxy's address, and limits.per_ip is not enforced for them; list the proxies, \
                     or set it to [] if there are none"
                );
            }
            return Visitor { is_own: false, ..own };
        };
        match peer {
            Some(peer) if is_in(trusted, peer) => Visitor { ip: Some(walk(trusted, peer, forwarded)), is_own: true },
            _ => own,
        }
    }
}

/// The lines of `X-Forwarded-For`, in their order.
pub(super) trait Forwarded {
    fn lines(&self) -> usize;
    /// Of an index below `lines`.
    fn line(&self, index: usize) -> &[u8];
}

impl Forwarded for HeaderMap {
    fn lines(&self) -> usize {
        self.get_all(X_FORWARDED_FOR).count()
    }

    fn line(&self, index: usize) -> &[u8] {
        self.get_all(X_FORWARDED_FOR).nth(index).map_or(&b""[..], HeaderValue::as_bytes)
    }
}

impl Forwarded for Option<&[u8]> {
    fn lines(&self) -> usize {
        usize::from(self.is_some())
    }

    fn line(&self, _: usize) -> &[u8] {
        self.unwrap_or_default()
    }
}

fn is_in(nets: &[IpNet], ip: IpAddr) -> bool {
    nets.iter().any(|net| net.contains(&ip))
}

/// From a trusted peer to the first address that is not trusted, or as far as the addresses go.
fn walk(trusted: &[IpNet], peer: IpAddr, forwarded: &impl Forwarded) -> IpAddr {
    let mut last = peer;
    let mut hops = 0;
    // Several lines are one list, in their order. There are few: the parser refuses more than 96 lines in all.
    for index in (0..forwarded.lines()).rev() {
        for hop in forwarded.line(index).rsplit(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            hops += 1;
            if hops > MAX_HOPS {
                return last;
            }
            // An empty element says nothing (RFC 9110 §5.6.1).
            if hop.is_empty() {
                continue;
            }
            match parse_hop(hop) {
                None => return last,
                Some(ip) if is_in(trusted, ip) => last = ip,
                Some(ip) => return ip,
            }
        }
    }
    last
}

/// An address with or without port, IPv6 with or without brackets and zone.
fn parse_hop(hop: &[u8]) -> Option<IpAddr> {
    let hop = std::str::from_utf8(hop).ok()?;
    if let Ok(ip) = hop.parse::<IpAddr>() {
        return Some(ip.to_canonical());
    }
    if let Ok(with_port) = hop.parse::<SocketAddrV4>() {
        return Some(IpAddr::V4(*with_port.ip()));
    }
    let ip = match hop.strip_prefix('[') {
        None => hop,
        Some(bracketed) => {
            let (ip, rest) = bracketed.split_once(']')?;
            let is_port = |text: &str| text.parse::<u16>().is_ok() && !text.starts_with('+');
            if !rest.is_empty() && !rest.strip_prefix(':').is_some_and(is_port) {
                return None;
            }
            ip
        }
    };
    let (ip, zone) = ip.split_once('%').map_or((ip, None), |(ip, zone)| (ip, Some(zone)));
    let ip = ip.parse::<Ipv6Addr>().ok()?;
    (zone != Some("")).then(|| IpAddr::V6(ip).to_canonical())
}

/// A network as `10.0.0.0/8`, or one address. IPv4 in an IPv6 dress counts as IPv4.
pub fn parse_net(text: &str) -> Option<IpNet> {
    let net = text.parse::<IpNet>().ok().or_else(|| Some(IpNet::from(text.parse::<IpAddr>().ok()?)))?;
    if let IpNet::V6(net) = net
        && let (Some(ip), Some(bits)) = (net.addr().to_ipv4_mapped(), net.prefix_len().checked_sub(96))
    {
        return Ipv4Net::new(ip, bits).ok().map(|net| IpNet::V4(net.trunc()));
    }
    Some(match net {
        IpNet::V4(net) => IpNet::V4(net.trunc()),
        IpNet::V6(net) => IpNet::V6(Ipv6Net::trunc(&net)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PROXY: &str = "10.0.0.1";

    fn headers(lines: &[&[u8]]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(X_FORWARDED_FOR, HeaderValue::from_bytes(line).unwrap());
        }
        headers
    }

    fn proxies(nets: &[&str]) -> Proxies {
        Proxies::new(Some(nets.iter().map(|net| parse_net(net).unwrap()).collect()))
    }

    fn found(nets: &[&str], peer: &str, lines: &[&str]) -> String {
        let lines: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
        let visitor = proxies(nets).find(Some(peer.parse().unwrap()), &headers(&lines));
        assert!(visitor.is_own);
        visitor.ip.unwrap().to_string()
    }

    #[test]
    fn the_walk_ends_at_the_first_hop_that_is_not_trusted() {
        let nets = ["10.0.0.0/8", "2001:db8:1::/48"];
        for (peer, lines, expected) in [
            // Nobody trusted speaks: the header is the visitor's own invention.
            ("203.0.113.9", &["198.51.100.1"][..], "203.0.113.9"),
            (PROXY, &["198.51.100.1"], "198.51.100.1"),
            (PROXY, &["6.6.6.6, 198.51.100.1"], "198.51.100.1"),
            (PROXY, &["6.6.6.6, 198.51.100.1, 10.9.9.9"], "198.51.100.1"),
            (PROXY, &["6.6.6.6", "198.51.100.1", "10.9.9.9,10.1.1.1"], "198.51.100.1"),
            (PROXY, &["10.3.3.3, 10.2.2.2"], "10.3.3.3"),
            (PROXY, &[], PROXY),
            (PROXY, &["", " , ,"], PROXY),
            (PROXY, &["198.51.100.1,, ,10.1.1.1,"], "198.51.100.1"),
            (PROXY, &["198.51.100.1, unknown, 10.1.1.1"], "10.1.1.1"),
            (PROXY, &["198.51.100.1, 10.1.1.1.1"], PROXY),
            ("::ffff:10.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            ("2001:db8:1::7", &["2001:DB8:2:0:0:0:0:1"], "2001:db8:2::1"),
        ] {
            assert_eq!(found(&nets, peer, lines), expected, "{peer} {lines:?}");
        }
    }

    #[test]
    fn hops_in_all_spellings() {
        for (hop, expected) in [
            ("1.2.3.4", "1.2.3.4"),
            ("1.2.3.4:5", "1.2.3.4"),
            ("::1", "::1"),
            ("[::1]", "::1"),
            ("[::1]:5", "::1"),
            ("[2001:db8::1]:65535", "2001:db8::1"),
            ("2001:0DB8:0:0:0:0:0:1", "2001:db8::1"),
            ("::ffff:1.2.3.4", "1.2.3.4"),
            ("::FFFF:0102:0304", "1.2.3.4"),
            ("[::ffff:1.2.3.4]:80", "1.2.3.4"),
            ("fe80::1%eth0", "fe80::1"),
            ("[fe80::1%25eth0]:1", "fe80::1"),
        ] {
            assert_eq!(found(&["10.0.0.1"], PROXY, &[hop]), expected, "{hop}");
        }
        for hop in [
            "1.2.3",
            "01.2.3.4",
            "1.2.3.4:",
            "1.2.3.4:65536",
            "1.2.3.4:x",
            "[::1",
            "::1]",
            "[::1]5",
            "[::1]:",
            "[::1]:+5",
            "[1.2.3.4]",
            "[1.2.3.4]:5",
            "1::2::3",
            ":::",
            "fe80::1%",
            "\"1.2.3.4\"",
            "for=1.2.3.4",
            "unknown",
            "_x",
            "1 2",
        ] {
            assert_eq!(found(&["10.0.0.1"], PROXY, &[hop]), PROXY, "{hop}");
        }
    }

    #[test]
    fn without_a_word_of_the_operator_the_header_is_counted_and_nothing_else() {
        let silent = Proxies::new(None);
        let peer = "203.0.113.9".parse().unwrap();
        let plain = silent.find(Some(peer), &headers(&[]));
        assert_eq!((plain, silent.untrusted_requests()), (Visitor { ip: Some(peer), is_own: true }, 0));
        let forwarded = silent.find(Some(peer), &headers(&[b"1.2.3.4"]));
        assert_eq!((forwarded, silent.untrusted_requests()), (Visitor { ip: Some(peer), is_own: false }, 1));
        let direct = proxies(&[]);
        let forged = direct.find(Some(peer), &headers(&[b"1.2.3.4"]));
        assert_eq!((forged, direct.untrusted_requests()), (Visitor { ip: Some(peer), is_own: true }, 0));
    }

    #[test]
    fn long_lists_are_not_read_to_their_end() {
        let trusted = "10.0.0.2,".repeat(MAX_HOPS);
        assert_eq!(found(&["10.0.0.0/8"], PROXY, &["6.6.6.6", &trusted]), "10.0.0.2");
        assert_eq!(found(&["10.0.0.0/8"], PROXY, &["6.6.6.6", &",".repeat(30_000)]), PROXY);
    }

    #[test]
    fn networks_as_operators_write_them() {
        for (text, expected) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("127.0.0.1", "127.0.0.1/32"),
            ("::1", "::1/128"),
            ("2001:db8::5/32", "2001:db8::/32"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:10.0.0.7", "10.0.0.7/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
        ] {
            assert_eq!(parse_net(text).unwrap().to_string(), expected, "{text}");
        }
        for bad in ["", "10.0.0.0/33", "10.0.0", "example.com", "10.0.0.0/", "::/129", "10.0.0.0 /8"] {
            assert_eq!(parse_net(bad), None, "{bad}");
        }
    }

    fn spelled(ip: IpAddr, spelling: u8) -> String {
        match (ip, spelling % 4) {
            (IpAddr::V4(ip), 0) => ip.to_string(),
            (IpAddr::V4(ip), 1) => format!("{ip}:443"),
            (IpAddr::V4(ip), 2) => ip.to_ipv6_mapped().to_string(),
            (IpAddr::V4(ip), _) => format!("[{}]:1", ip.to_ipv6_mapped()),
            (IpAddr::V6(ip), 0) => ip.to_string(),
            (IpAddr::V6(ip), 1) => format!("[{ip}]:443"),
            (IpAddr::V6(ip), 2) => ip.segments().map(|part| format!("{part:04X}")).join(":"),
            (IpAddr::V6(ip), _) => format!("[{ip}]"),
        }
    }

    proptest! {
        #[test]
        fn no_visitor_can_choose_an_address(
            invented in proptest::collection::vec(any::<(IpAddr, u8)>(), 0..6),
            visitor: (IpAddr, u8),
            proxies in proptest::collection::vec((0u32..1 << 24, any::<u8>()), 0..6),
            cuts: u16,
        ) {
            let visitor_ip = visitor.0.to_canonical();
            let net = parse_net("10.0.0.0/8").unwrap();
            prop_assume!(!net.contains(&visitor_ip));
            let proxy = |(low, spelling): (u32, u8)| spelled(IpAddr::V4((0x0A00_0000 | low).into()), spelling);
            let mut hops: Vec<String> = invented.iter().map(|(ip, how)| spelled(*ip, *how)).collect();
            hops.push(spelled(visitor.0, visitor.1));
            hops.extend(proxies.into_iter().map(proxy));
            // Anywhere, a list may go on in a line of its own.
            let mut lines = vec![String::new()];
            for (index, hop) in hops.iter().enumerate() {
                if cuts >> (index % 16) & 1 == 1 {
                    lines.push(String::new());
                }
                let line = lines.last_mut().unwrap();
                line.push_str(if line.is_empty() { "" } else { ", " });
                line.push_str(hop);
            }
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            prop_assert_eq!(found(&["10.0.0.0/8"], PROXY, &lines), visitor_ip.to_string());
        }

        #[test]
        fn any_bytes_are_an_answer(line in proptest::collection::vec(32u8..=255, 0..200)) {
            let line: Vec<u8> = line.into_iter().filter(|byte| *byte != 127).collect();
            let visitor = proxies(&["10.0.0.0/8"]).find(Some(PROXY.parse().unwrap()), &headers(&[&line]));
            prop_assert!(visitor.ip.is_some());
        }
    }
}
