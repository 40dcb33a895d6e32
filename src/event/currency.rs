//! ISO 4217 active alphabetic codes, list one as amended up to number 177 (2024), without test and "no currency" codes.

/// Sorted, so that a look-up is a binary search over 700 bytes.
const CODES: &[&str] = &[
    "AED", "AFN", "ALL", "AMD", "AOA", "ARS", "AUD", "AWG", "AZN", "BAM", "BBD", "BDT", "BGN", "BHD", "BIF", "BMD",
    "BND", "BOB", "BOV", "BRL", "BSD", "BTN", "BWP", "BYN", "BZD", "CAD", "CDF", "CHE", "CHF", "CHW", "CLF", "CLP",
    "CNY", "COP", "COU", "CRC", "CUP", "CVE", "CZK", "DJF", "DKK", "DOP", "DZD", "EGP", "ERN", "ETB", "EUR", "FJD",
    "FKP", "GBP", "GEL", "GHS", "GIP", "GMD", "GNF", "GTQ", "GYD", "HKD", "HNL", "HTG", "HUF", "IDR", "ILS", "INR",
    "IQD", "IRR", "ISK", "JMD", "JOD", "JPY", "KES", "KGS", "KHR", "KMF", "KPW", "KRW", "KWD", "KYD", "KZT", "LAK",
    "LBP", "LKR", "LRD", "LSL", "LYD", "MAD", "MDL", "MGA", "MKD", "MMK", "MNT", "MOP", "MRU", "MUR", "MVR", "MWK",
    "MXN", "MXV", "MYR", "MZN", "NAD", "NGN", "NIO", "NOK", "NPR", "NZD", "OMR", "PAB", "PEN", "PGK", "PHP", "PKR",
    "PLN", "PYG", "QAR", "RON", "RSD", "RUB", "RWF", "SAR", "SBD", "SCR", "SDG", "SEK", "SGD", "SHP", "SLE", "SOS",
    "SRD", "SSP", "STN", "SVC", "SYP", "SZL", "THB", "TJS", "TMT", "TND", "TOP", "TRY", "TTD", "TWD", "TZS", "UAH",
    "UGX", "USD", "USN", "UYI", "UYU", "UYW", "UZS", "VED", "VES", "VND", "VUV", "WST", "XAF", "XAG", "XAU", "XCD",
    "XCG", "XDR", "XOF", "XPD", "XPF", "XPT", "XSU", "XUA", "YER", "ZAR", "ZMW", "ZWG",
];

/// The code in upper case, whatever case it came in; surrounding white space is ignored.
pub fn parse(text: &str) -> Option<&'static str> {
    let mut code: [u8; 3] = text.trim().as_bytes().try_into().ok()?;
    code.make_ascii_uppercase();
    let at = CODES.binary_search_by(|known| known.as_bytes().cmp(&code)).ok()?;
    CODES.get(at).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_case_in_upper_case_out() {
        for (text, code) in [("usd", "USD"), ("Gbp", "GBP"), (" EUR ", "EUR")] {
            assert_eq!(parse(text), Some(code));
        }
        for bad in ["", "US", "USDX", "XXX", "XTS", "DEM", "Dhs", "[CURRENCY]", "€€€", "ABC"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_list_is_sorted_and_without_doubles() {
        assert!(CODES.is_sorted_by(|a, b| a < b));
    }
}
