//! The closed sets of label values: small enums with the words that metrics show.

/// Which route of the public or management listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// `/offsite_event.php`, `/offsite_event`.
    Event,
    /// `/tr`, `/tr/`.
    Tr,
    /// The first-party tag.
    Tag,
    /// `/offsitepixels` and below.
    Management,
    /// Anything else.
    Other,
}

/// A request's method.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "they are what they are called")]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Options,
    Other,
}

/// First digit of a status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "they are what they are called")]
pub enum StatusClass {
    C2xx,
    C3xx,
    C4xx,
    C5xx,
}

impl Route {
    /// All of them.
    pub const ALL: [Route; 5] = [Route::Event, Route::Tr, Route::Tag, Route::Management, Route::Other];

    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Route::Event => "offsite_event",
            Route::Tr => "tr",
            Route::Tag => "fp_js",
            Route::Management => "offsitepixels",
            Route::Other => "other",
        }
    }

    /// Whether the series is shown from the start: what this route answers to such methods. Fewer series that can
    /// never count keep a scrape small.
    pub fn answers(self, method: Method, class: StatusClass) -> bool {
        use Method::{Delete, Get, Head, Other, Put};
        use StatusClass::{C3xx, C5xx};
        match self {
            Route::Event | Route::Tr => !matches!(method, Put | Delete) && class != C3xx,
            Route::Tag => matches!(method, Get | Head | Other) && class != C5xx,
            Route::Management => true,
            Route::Other => matches!(method, Get | Other) && !matches!(class, C3xx | C5xx),
        }
    }
}

impl Method {
    /// All of them.
    pub const ALL: [Method; 7] =
        [Method::Get, Method::Head, Method::Post, Method::Put, Method::Delete, Method::Options, Method::Other];

    /// A method by its name on the wire.
    pub fn of(name: &str) -> Method {
        match name {
            "GET" => Method::Get,
            "POST" => Method::Post,
            "HEAD" => Method::Head,
            "OPTIONS" => Method::Options,
            "PUT" => Method::Put,
            "DELETE" => Method::Delete,
            _ => Method::Other,
        }
    }

    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Delete => "DELETE",
            Method::Options => "OPTIONS",
            Method::Other => "other",
        }
    }
}

impl StatusClass {
    /// All of them.
    pub const ALL: [StatusClass; 4] = [StatusClass::C2xx, StatusClass::C3xx, StatusClass::C4xx, StatusClass::C5xx];

    /// A status' class; what is no final status of HTTP counts as the server's fault.
    pub fn of(status: u16) -> StatusClass {
        match status {
            200..300 => StatusClass::C2xx,
            300..400 => StatusClass::C3xx,
            400..500 => StatusClass::C4xx,
            _ => StatusClass::C5xx,
        }
    }

    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            StatusClass::C2xx => "2xx",
            StatusClass::C3xx => "3xx",
            StatusClass::C4xx => "4xx",
            StatusClass::C5xx => "5xx",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lists_each_in_order_of_its_number() {
        assert!(Route::ALL.into_iter().enumerate().all(|(index, value)| value as usize == index));
        assert!(Method::ALL.into_iter().enumerate().all(|(index, value)| value as usize == index));
        assert!(StatusClass::ALL.into_iter().enumerate().all(|(index, value)| value as usize == index));
    }

    #[test]
    fn methods_are_known_by_their_names() {
        for method in Method::ALL.into_iter().filter(|method| *method != Method::Other) {
            assert_eq!(Method::of(method.as_str()), method);
        }
        assert_eq!(Method::of("get"), Method::Other);
    }
}
