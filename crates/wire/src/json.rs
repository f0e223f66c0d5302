//! JSON string literals whose length is known before they are written, so that an encoder can reserve exactly.

/// A JSON string literal, quotes included.
pub(crate) enum Quoted<'a> {
    /// Needs no escapes, which is nearly every event name, id and offset: nothing is allocated.
    Plain(&'a str),
    /// Already written out, quotes included.
    Escaped(String),
}

impl<'a> Quoted<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        // RFC 8259 section 7 asks for escapes of exactly these; everything else may stand as it is in UTF-8.
        if text.bytes().any(|byte| byte < 0x20 || byte == b'"' || byte == b'\\') {
            Self::Escaped(serde_json::Value::from(text).to_string())
        } else {
            Self::Plain(text)
        }
    }

    /// The length in bytes of what [`Quoted::push_to`] writes.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Plain(text) => text.len() + 2,
            Self::Escaped(literal) => literal.len(),
        }
    }

    pub(crate) fn push_to(&self, out: &mut String) {
        match self {
            Self::Plain(text) => {
                out.push('"');
                out.push_str(text);
                out.push('"');
            }
            Self::Escaped(literal) => out.push_str(literal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Quoted;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_quoted_string_reads_back_and_has_the_announced_length(text in any::<String>()) {
            let quoted = Quoted::new(&text);
            let mut out = String::new();
            quoted.push_to(&mut out);
            prop_assert_eq!(out.len(), quoted.len());
            prop_assert_eq!(serde_json::from_str::<String>(&out).unwrap(), text);
        }
    }
}
