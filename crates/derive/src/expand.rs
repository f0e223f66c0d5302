//! From a struct and its options to an implementation of `Job`.

use std::time::Duration;

use proc_macro2::TokenStream;
use quote::quote;
use syn::ext::IdentExt;
use syn::{Data, DeriveInput, Error, Result};

use crate::options::{Backoff, Jitter, Options};

/// The implementation of `Job` for a struct or an enum.
pub(crate) fn job(input: &DeriveInput) -> Result<TokenStream> {
    if matches!(input.data, Data::Union(_)) {
        return Err(Error::new_spanned(&input.ident, "a job is a struct or an enum"));
    }
    let options = Options::read(&input.attrs)?;
    let name = &input.ident;
    let kind = options.kind.clone().unwrap_or_else(|| kebab(&name.unraw().to_string()));
    let (generics, arguments, bounds) = input.generics.split_for_impl();
    let set = settings(&options);
    // Only where there is something to set, so that `mut` is never without a use.
    let stage = (!set.is_empty()).then(|| {
        quote! {
            fn stage(&self) -> ::tidewire::Result<::tidewire::NewJob> {
                let data = ::tidewire::Json::from_serialize(self)?;
                let mut job = ::tidewire::NewJob::new(<Self as ::tidewire::Job>::TYPE, data);
                #(#set)*
                ::core::result::Result::Ok(job)
            }
        }
    });
    Ok(quote! {
        #[automatically_derived]
        impl #generics ::tidewire::Job for #name #arguments #bounds {
            const TYPE: &'static str = #kind;
            #stage
        }
    })
}

fn settings(options: &Options) -> Vec<TokenStream> {
    let some = quote!(::core::option::Option::Some);
    let queue = options.queue.as_ref().map(|queue| quote!(job.queue = #some(#queue.into());));
    let attempts = options.attempts.map(|attempts| quote!(job.attempts = #some(#attempts);));
    let backoff = options.backoff.as_ref().map(|backoff| {
        let backoff = backoff_value(backoff);
        quote!(job.backoff = #some(#backoff);)
    });
    let timeout = options.timeout.map(|timeout| {
        let timeout = duration_value(timeout);
        quote!(job.timeout = #some(::tidewire::Delay(#timeout));)
    });
    let ttl = options.ttl.map(|ttl| {
        let ttl = duration_value(ttl);
        quote!(job.ttl = #some(::tidewire::Delay(#ttl));)
    });
    let retry_for = options.retry_for.map(|time| {
        let time = duration_value(time);
        quote!(job.retry_for = #some(::tidewire::Delay(#time));)
    });
    let priority = options.priority.map(|priority| quote!(job.priority = #some(::tidewire::Priority(#priority));));
    let key = options.key.as_ref().map(|key| {
        let key = key.value();
        quote!(job.key = #some(#key);)
    });
    let unique = options.unique.as_ref().map(|unique| {
        let unique = unique.value();
        quote!(job.unique = #some(#unique);)
    });
    [queue, attempts, backoff, timeout, ttl, retry_for, priority, key, unique].into_iter().flatten().collect()
}

pub(crate) fn duration_value(duration: Duration) -> TokenStream {
    // Durations are read to the microsecond and at most ten years long.
    let micros = duration.as_micros() as u64;
    quote!(::core::time::Duration::from_micros(#micros))
}

fn backoff_value(backoff: &Backoff) -> TokenStream {
    match backoff {
        Backoff::Fixed { base, jitter } => {
            let (base, jitter) = (duration_value(*base), jitter_value(jitter));
            quote!(::tidewire::Backoff::Fixed { base: #base, jitter: #jitter })
        }
        Backoff::Exponential { base, factor, cap, jitter } => {
            let (base, cap, jitter) = (duration_value(*base), duration_value(*cap), jitter_value(jitter));
            quote!(::tidewire::Backoff::Exponential { base: #base, factor: #factor, cap: #cap, jitter: #jitter })
        }
        Backoff::Delays(delays) => {
            let delays = delays.iter().copied().map(duration_value);
            quote!(::tidewire::Backoff::Delays { delays: ::std::vec![#(#delays),*] })
        }
    }
}

fn jitter_value(jitter: &Jitter) -> TokenStream {
    match jitter {
        Jitter::Share(share) => quote!(::tidewire::Jitter::Share(#share)),
        Jitter::Added(most) => {
            let most = duration_value(*most);
            quote!(::tidewire::Jitter::Added(#most))
        }
    }
}

/// `SendWelcome` as `send-welcome`, `SyncCRMContact` as `sync-crm-contact`.
fn kebab(name: &str) -> String {
    let letters: Vec<char> = name.chars().collect();
    let mut kebab = String::with_capacity(name.len() + 4);
    for (index, letter) in letters.iter().enumerate() {
        let before = index.checked_sub(1).map(|before| letters[before]);
        let is_followed_by_small = letters.get(index + 1).is_some_and(|next| next.is_lowercase());
        let begins_a_word = letter.is_uppercase()
            && before.is_some_and(|before| {
                before.is_lowercase() || before.is_numeric() || (before.is_uppercase() && is_followed_by_small)
            });
        if begins_a_word {
            kebab.push('-');
        }
        if *letter == '_' {
            kebab.push('-');
        } else {
            kebab.extend(letter.to_lowercase());
        }
    }
    kebab
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Result<String> {
        let input: DeriveInput = syn::parse_str(text)?;
        job(&input).map(|tokens| tokens.to_string())
    }

    #[test]
    fn a_type_is_named_after_its_struct() {
        for (name, kind) in [
            ("SendWelcome", "send-welcome"),
            ("Pack", "pack"),
            ("SyncCRMContact", "sync-crm-contact"),
            ("HTTPCall", "http-call"),
            ("Step2Done", "step2-done"),
            ("Snake_Case", "snake-case"),
        ] {
            assert_eq!(kebab(name), kind);
        }
        assert!(expanded("struct r#SendWelcome;").expect("a struct").contains("\"send-welcome\""));
    }

    #[test]
    fn generics_are_kept_and_unions_refused() {
        let generic = expanded("struct Copy<T: Clone>(T) where T: Send;").expect("a struct");
        assert!(generic.contains("impl < T : Clone > :: tidewire :: Job for Copy < T > where T : Send"), "{generic}");
        let union = expanded("union Both { a: u8, b: i8 }").expect_err("a union");
        assert_eq!(union.to_string(), "a job is a struct or an enum");
    }

    #[test]
    fn a_struct_without_options_is_staged_as_the_catalog_says() {
        assert!(!expanded("struct Pack;").expect("a struct").contains("fn stage"));
        assert!(expanded("#[job(attempts = 2)] struct Pack;").expect("a struct").contains("fn stage"));
    }
}
