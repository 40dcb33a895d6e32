//! What texts are allowed: each rule is a test and the words that say it.

use super::kind::Rule;
use crate::event::{currency, privacy, value};
use crate::http::{client, tag};
use crate::registry::database;
use crate::upstream;
use crate::{node, policy};

/// A path.
pub(super) const PATH: Rule =
    Rule { allowed: "allowed is a path", fits: |text| !text.is_empty() && !text.contains('\0') };

/// A node's name.
pub(super) const NODE_ID: Rule =
    Rule { allowed: "allowed are 1 to 64 letters, digits, '.', '_' and '-'", fits: node::is_node_id };

/// The base of public URLs. It is written into HTML and scripts, so nothing that ends a text may be in it.
pub(super) const URL: Rule = Rule {
    allowed: "allowed is an http or https URL such as https://pixel.example.com",
    fits: |text| {
        let ends = |letter: char| letter.is_control() || "\"'<>\\ `?#".contains(letter);
        privacy::is_url(text) && !text.contains(ends)
    },
};

/// A network, or one address.
pub(super) const NETWORK: Rule = Rule {
    allowed: "allowed are networks such as 10.0.0.0/8 or 2001:db8::/32, and single addresses",
    fits: |text| client::parse_net(text).is_some(),
};

/// A broker to begin with.
pub(super) const BROKER: Rule = Rule {
    allowed: "allowed are HOST:PORT such as kafka-1:9092",
    fits: |text| {
        let host = text.rsplit_once("://").map_or(text, |(_, host)| host);
        let (host, port) = host.rsplit_once(':').unwrap_or((host, "9092"));
        let plain = |byte: u8| byte.is_ascii_graphic() && !b",/\"'".contains(&byte);
        !host.is_empty() && host.bytes().all(plain) && port.parse::<u16>().is_ok_and(|port| port > 0)
    },
};

fn is_topic(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=249).contains(&text.len()) && text.bytes().all(allowed) && text != "." && text != ".."
}

/// A topic, as Kafka allows it.
pub(super) const TOPIC: Rule =
    Rule { allowed: "allowed are 1 to 249 letters, digits, '.', '_' and '-'", fits: is_topic };

/// A topic, or none.
pub(super) const TOPIC_OR_NONE: Rule = Rule {
    allowed: "allowed are 1 to 249 letters, digits, '.', '_' and '-', or nothing",
    fits: |text| text.is_empty() || is_topic(text),
};

/// A token, as a header can carry it.
pub(super) const TOKEN: Rule = Rule {
    allowed: "allowed are visible ASCII characters without spaces",
    fits: |text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()),
};

/// A database that authorities share.
pub(super) const DATABASE: Rule =
    Rule { allowed: database::ALLOWED, fits: |text| database::Address::parse(text).is_some() };

/// A user of basic authentication (RFC 7617).
pub(super) const USERNAME: Rule = Rule {
    allowed: "allowed are characters but ':' and control characters",
    fits: |text| !text.is_empty() && !text.contains(|letter: char| letter == ':' || letter.is_control()),
};

/// A password of basic authentication.
pub(super) const PASSWORD: Rule = Rule {
    allowed: "allowed are characters but control characters",
    fits: |text| !text.is_empty() && !text.contains(char::is_control),
};

/// Where another authority is.
pub(super) const UPSTREAM: Rule =
    Rule { allowed: upstream::ALLOWED, fits: |text| upstream::Base::parse(text).is_some() };

/// An ad account.
pub(super) const AD_ACCOUNT: Rule = Rule {
    allowed: "allowed are 1 to 20 digits without a leading zero, in quotes",
    fits: crate::registry::is_ad_account,
};

/// A cookie's name (RFC 6265: a token).
pub(super) const COOKIE: Rule = Rule {
    allowed: "allowed are names of cookies such as session_id",
    fits: |text| {
        let token = |byte: u8| byte.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?={}".contains(&byte);
        !text.is_empty() && text.bytes().all(token)
    },
};

fn is_own_cookie(text: &str) -> bool {
    (1..=64).contains(&text.len()) && (COOKIE.fits)(text) && !["_fbp", "_fbc"].contains(&text)
}

/// The name of the visitor id's cookie.
pub(super) const OWN_COOKIE: Rule = Rule {
    allowed: "allowed are names of cookies such as pgid, of at most 64 characters, but for _fbp and _fbc",
    fits: is_own_cookie,
};

/// A cookie's domain. Browsers take no address and no single label.
pub(super) const DOMAIN: Rule = Rule {
    allowed: "allowed is a name of at least two labels such as shop.example, without scheme, port and a leading dot",
    fits: |text| {
        let is_name =
            text.split('.').next_back().is_some_and(|last| last.bytes().any(|byte| byte.is_ascii_alphabetic()));
        policy::is_name(text) && text.contains('.') && is_name
    },
};

/// Where the loader is.
pub(super) const LOADER: Rule = Rule {
    allowed: "allowed is a path such as /site.js that ends in .js, of at most 24 letters, digits, '.', '_', '-' and \
              '/', where nothing else is, and whose name filter lists don't block as they do fbevents.js",
    fits: tag::is_loader_path,
};

/// A conversion's value.
pub(super) const VALUE: Rule =
    Rule { allowed: "allowed are decimals such as 0.00", fits: |text| value::parse(text).is_some() };

/// A currency.
pub(super) const CURRENCY: Rule =
    Rule { allowed: "allowed are active ISO 4217 codes such as USD", fits: |text| currency::parse(text).is_some() };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_refuse_what_would_fail_later() {
        for (rule, bad) in [
            (PATH, ""),
            (NODE_ID, "a b"),
            (URL, "ftp://a"),
            (URL, "https://a/\">"),
            (URL, "https://a/?b"),
            (NETWORK, "10.0.0.0/33"),
            (NETWORK, "proxy.example.com"),
            (BROKER, "kafka:port"),
            (BROKER, "kafka:0"),
            (BROKER, ":9092"),
            (BROKER, "kafka 1:9092"),
            (TOPIC, ""),
            (TOPIC, ".."),
            (TOPIC, "a/b"),
            (TOPIC_OR_NONE, "a b"),
            (UPSTREAM, "https://user@api.example.com"),
            (UPSTREAM, "api.example.com"),
            (COOKIE, "a=b"),
            (COOKIE, "a b"),
            (OWN_COOKIE, ""),
            (OWN_COOKIE, "a;b"),
            (OWN_COOKIE, "_fbp"),
            (DOMAIN, "localhost"),
            (DOMAIN, ".shop.example"),
            (DOMAIN, "shop.example."),
            (DOMAIN, "192.0.2.1"),
            (DOMAIN, "shop.example:443"),
            (DOMAIN, "shop.example; Path=/x"),
            (DOMAIN, "b\u{fc}cher.example"),
            (LOADER, "/fp.js"),
            (VALUE, "1,0"),
            (CURRENCY, "XXY"),
        ] {
            assert!(!(rule.fits)(bad), "{bad:?}: {}", rule.allowed);
        }
        for (rule, good) in [
            (URL, "https://pixel.example.com/a"),
            (BROKER, "kafka-1:9092"),
            (BROKER, "kafka"),
            (BROKER, "[::1]:9092"),
            (BROKER, "SASL_SSL://kafka:9093"),
            (TOPIC_OR_NONE, ""),
            (UPSTREAM, "http://127.0.0.1:9000"),
            (COOKIE, "_session-id"),
            (OWN_COOKIE, "__Host-pgid"),
            (DOMAIN, "xn--bcher-kva.example"),
        ] {
            assert!((rule.fits)(good), "{good:?}: {}", rule.allowed);
        }
    }
}
