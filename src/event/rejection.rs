//! Why a request is refused: one closed enum and one table from it to status, reason and retry advice (contract §3).

/// The client's outcome when an event is not accepted. No source chain: the word says it all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[expect(missing_docs, reason = "each is the contract's word, explained in docs/contract.md")]
pub enum Rejection {
    MissingId,
    InvalidId,
    MalformedBody,
    InvalidValue,
    InvalidCurrency,
    OriginNotAllowed,
    UnknownPixel,
    ArchivedPixel,
    MethodNotAllowed,
    BodyTimeout,
    BodyTooLarge,
    UriTooLong,
    UnsupportedMediaType,
    HeaderTooLarge,
    RateLimited,
    JournalFull,
    JournalUnavailable,
    Overloaded,
    ShuttingDown,
}

/// One line of the table.
struct Row {
    status: u16,
    reason: &'static str,
    title: &'static str,
}

impl Rejection {
    /// All of them, in the contract's order.
    pub const ALL: [Rejection; 19] = [
        Rejection::MissingId,
        Rejection::InvalidId,
        Rejection::MalformedBody,
        Rejection::InvalidValue,
        Rejection::InvalidCurrency,
        Rejection::OriginNotAllowed,
        Rejection::UnknownPixel,
        Rejection::ArchivedPixel,
        Rejection::MethodNotAllowed,
        Rejection::BodyTimeout,
        Rejection::BodyTooLarge,
        Rejection::UriTooLong,
        Rejection::UnsupportedMediaType,
        Rejection::HeaderTooLarge,
        Rejection::RateLimited,
        Rejection::JournalFull,
        Rejection::JournalUnavailable,
        Rejection::Overloaded,
        Rejection::ShuttingDown,
    ];

    fn row(self) -> Row {
        let row = |status, reason, title| Row { status, reason, title };
        match self {
            Rejection::MissingId => row(400, "missing_id", "The parameter id is missing or empty"),
            Rejection::InvalidId => row(400, "invalid_id", "id must be 1 to 20 digits without a leading zero"),
            Rejection::MalformedBody => row(400, "malformed_body", "The body is not what its Content-Type says"),
            Rejection::InvalidValue => {
                row(400, "invalid_value", "value must be a decimal with at most 15 integer and 8 fraction digits")
            }
            Rejection::InvalidCurrency => row(400, "invalid_currency", "currency must be an active ISO 4217 code"),
            Rejection::OriginNotAllowed => row(403, "origin_not_allowed", "This pixel does not allow this origin"),
            Rejection::UnknownPixel => row(404, "unknown_pixel", "No pixel with this id is known"),
            Rejection::ArchivedPixel => row(404, "archived_pixel", "This pixel is archived"),
            Rejection::MethodNotAllowed => row(405, "method_not_allowed", "Allowed: GET, HEAD, POST, OPTIONS"),
            Rejection::BodyTimeout => row(408, "body_timeout", "The body did not arrive in time"),
            Rejection::BodyTooLarge => row(413, "body_too_large", "The body exceeds limits.max_body_bytes"),
            Rejection::UriTooLong => row(414, "uri_too_long", "The request target exceeds server.max_uri_bytes"),
            Rejection::UnsupportedMediaType => row(
                415,
                "unsupported_media_type",
                "Allowed, without Content-Encoding: application/x-www-form-urlencoded, multipart/form-data, \
                 application/json, text/plain",
            ),
            Rejection::HeaderTooLarge => row(431, "header_too_large", "The headers exceed server.max_header_bytes"),
            Rejection::RateLimited => row(429, "rate_limited", "Too many requests"),
            Rejection::JournalFull => row(503, "journal_full", "The journal has no room"),
            Rejection::JournalUnavailable => row(503, "journal_unavailable", "The journal could not be written"),
            Rejection::Overloaded => row(503, "overloaded", "Too many requests are in flight"),
            Rejection::ShuttingDown => row(503, "shutting_down", "The gateway is shutting down"),
        }
    }

    /// HTTP status.
    pub fn status(self) -> u16 {
        self.row().status
    }

    /// The contract's word: `X-Pixelgate-Reason`, `reason` of the problem and the record, metric label.
    pub fn reason(self) -> &'static str {
        self.row().reason
    }

    /// A sentence for people: `title` of the RFC 9457 problem.
    pub fn title(self) -> &'static str {
        self.row().title
    }

    /// Seconds after which a retry may succeed, for `Retry-After`. Of `RateLimited`, the least: its limit knows better.
    pub fn retry_after_seconds(self) -> Option<u64> {
        match self {
            Rejection::RateLimited | Rejection::Overloaded => Some(1),
            // A restart behind the same address takes seconds, and so does another node's take-over.
            Rejection::ShuttingDown => Some(5),
            // Publishing frees whole segments; a person has to look at a disk.
            Rejection::JournalFull | Rejection::JournalUnavailable => Some(30),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lists_each_once_in_order_of_its_number() {
        for (index, rejection) in Rejection::ALL.into_iter().enumerate() {
            assert_eq!(rejection as usize, index);
        }
    }

    #[test]
    fn what_is_temporary_says_when_to_come_again() {
        for rejection in Rejection::ALL {
            assert_eq!(rejection.retry_after_seconds().is_some(), matches!(rejection.status(), 429 | 503));
        }
    }

    #[test]
    fn reasons_differ() {
        let mut reasons: Vec<_> = Rejection::ALL.map(Rejection::reason).into();
        reasons.sort_unstable();
        reasons.dedup();
        assert_eq!(reasons.len(), Rejection::ALL.len());
    }
}
