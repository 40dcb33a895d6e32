//! Sixteen-byte identities as 32 lower-case hex digits.

/// Text of an identity.
pub fn encode(id: &[u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(*id))
}

/// The identity of a text; `None` unless it is exactly what [`encode`] writes.
pub fn decode(text: &str) -> Option<[u8; 16]> {
    let number = u128::from_str_radix(text, 16).ok()?.to_be_bytes();
    (encode(&number) == text).then_some(number)
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_its_own_form_is_read() {
        let id = *b"\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\xff";
        let text = super::encode(&id);
        assert_eq!(text, "000102030405060708090a0b0c0d0eff");
        assert_eq!(super::decode(&text), Some(id));
        for bad in ["", "0", "+00102030405060708090a0b0c0d0eff", "000102030405060708090A0B0C0D0EFF"] {
            assert_eq!(super::decode(bad), None, "{bad}");
        }
    }
}
