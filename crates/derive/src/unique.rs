//! `unique(…)` and `key = "…"`: keys made of a job's own fields.

use proc_macro2::{Ident, Span, TokenStream};
use quote::quote;
use syn::meta::ParseNestedMeta;
use syn::{Error, LitStr, Result};

use crate::duration;
use crate::expand::duration_value;

/// A text with holes for fields: `invoice-{number}`.
#[derive(Debug, PartialEq)]
pub(crate) struct Template {
    /// With `{}` for each hole, as `format!` takes it.
    format: String,
    fields: Vec<String>,
}

impl Template {
    pub(crate) fn read(text: &str) -> std::result::Result<Self, String> {
        let wrong =
            || format!("key: expected a text with fields in braces such as \"invoice-{{number}}\", got {text:?}");
        let (mut format, mut fields) = (String::new(), Vec::new());
        let mut rest = text;
        while let Some(open) = rest.find(['{', '}']) {
            let inside = rest[open..].strip_prefix('{').and_then(|rest| rest.split_once('}'));
            let (field, after) = inside.ok_or_else(wrong)?;
            if syn::parse_str::<Ident>(field).is_err() {
                return Err(wrong());
            }
            format.push_str(&rest[..open]);
            format.push_str("{}");
            fields.push(field.to_owned());
            rest = after;
        }
        format.push_str(rest);
        if text.is_empty() { Err(wrong()) } else { Ok(Self { format, fields }) }
    }

    /// The text for `self`. A field that the struct lacks, or that cannot be shown, is the compiler's to tell.
    pub(crate) fn value(&self) -> TokenStream {
        let fields = self.fields.iter().map(|field| Ident::new(field, Span::call_site()));
        let format = &self.format;
        quote!(::std::format!(#format, #(self.#fields),*))
    }
}

/// How a job is the only one of its key.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Unique {
    key: Option<Template>,
    window: Option<std::time::Duration>,
    waiting: Option<bool>,
    on_conflict: Option<String>,
}

const KNOWN: &str = "key, window, while, on_conflict";
const CONFLICTS: [&str; 5] = ["keep", "replace", "extend", "latest", "supersede"];

impl Unique {
    /// Reads `unique` or `unique(key = "{to}", window = "1h", while = "waiting", on_conflict = "latest")`.
    pub(crate) fn read(meta: &ParseNestedMeta<'_>) -> Result<Self> {
        let mut unique = Self::default();
        if !meta.input.peek(syn::token::Paren) {
            return Ok(unique);
        }
        meta.parse_nested_meta(|inner| {
            let name = inner.path.get_ident().map(ToString::to_string).unwrap_or_default();
            if !KNOWN.split(", ").any(|known| known == name) {
                return Err(inner.error(format!("there is no such option of unique; expected one of {KNOWN}")));
            }
            let text: LitStr = inner.value()?.parse()?;
            let wrong = |what: String| Error::new(text.span(), what);
            let value = text.value();
            let is_new = match name.as_str() {
                "key" => unique.key.replace(Template::read(&value).map_err(wrong)?).is_none(),
                "window" => unique.window.replace(duration::parse(&value).map_err(wrong)?).is_none(),
                "while" => match value.as_str() {
                    "waiting" => unique.waiting.replace(true).is_none(),
                    "unfinished" => unique.waiting.replace(false).is_none(),
                    _ => return Err(wrong("while: expected \"waiting\" or \"unfinished\"".to_owned())),
                },
                _ if CONFLICTS.contains(&value.as_str()) => unique.on_conflict.replace(value).is_none(),
                _ => return Err(wrong(format!("on_conflict: expected one of {}", CONFLICTS.join(", ")))),
            };
            if is_new { Ok(()) } else { Err(inner.error(format!("`{name}` is given twice"))) }
        })?;
        Ok(unique)
    }

    /// The `NewUnique` of `self`.
    pub(crate) fn value(&self) -> TokenStream {
        let some = |value: Option<TokenStream>| match value {
            Some(value) => quote!(::core::option::Option::Some(#value)),
            None => quote!(::core::option::Option::None),
        };
        let key = some(self.key.as_ref().map(Template::value));
        let window = some(self.window.map(duration_value).map(|window| quote!(::tidewire::Delay(#window))));
        let states = some(self.waiting.map(|waiting| match waiting {
            true => quote!(::tidewire::JobStates::WAITING),
            false => quote!(::tidewire::JobStates::UNFINISHED),
        }));
        let on_conflict = some(self.on_conflict.as_deref().map(|on_conflict| match on_conflict {
            "replace" => quote!(::tidewire::OnConflict::Replace),
            "extend" => quote!(::tidewire::OnConflict::Extend),
            "latest" => quote!(::tidewire::OnConflict::Latest),
            "supersede" => quote!(::tidewire::OnConflict::Supersede),
            _ => quote!(::tidewire::OnConflict::Keep),
        }));
        quote!(::tidewire::NewUnique { key: #key, window: #window, states: #states, on_conflict: #on_conflict })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_of_fields() {
        let template = Template::read("invoice-{number}/{part}").expect("a template");
        assert_eq!(
            template.value().to_string(),
            quote!(::std::format!("invoice-{}/{}", self.number, self.part)).to_string()
        );
        for bad in ["", "{", "}", "{}", "{a b}", "{0}"] {
            assert!(Template::read(bad).is_err(), "{bad}");
        }
    }
}
