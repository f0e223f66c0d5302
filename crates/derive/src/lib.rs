//! `#[derive(tidewire::Job)]`: a struct becomes a job type, with the options that its jobs are staged with.
//!
//! Use it through the `tidewire` crate, which explains it; here is only how the text of the attribute becomes code. What is wrong in an
//! attribute is a compile error at the place where it stands. What only the catalog knows, such as which queues exist, is checked when
//! the app is built or the job is staged.

mod duration;
mod expand;
mod options;
mod unique;

use proc_macro::TokenStream;

/// Makes a struct a job type: see the page of `tidewire::Job`.
#[proc_macro_derive(Job, attributes(job))]
pub fn job(input: TokenStream) -> TokenStream {
    let input = syn::parse_macro_input!(input as syn::DeriveInput);
    expand::job(&input).unwrap_or_else(syn::Error::into_compile_error).into()
}
