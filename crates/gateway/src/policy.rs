//! Which rooms a socket is in by itself, and which it may ask for.

use std::borrow::Cow;

use serde_json::{Map, Value};
use tidewire_core::catalog::{Catalog, Join, Room};
use tidewire_core::principal::Principal;

use crate::presence::Word;
use crate::socket::Since;

/// The longest name of a room in bytes.
pub(crate) const MAX_ROOM_BYTES: usize = 512;

/// A room that a socket may be in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Allowed {
    pub(crate) name: String,
    /// Whether the room spans tenants.
    pub(crate) app: bool,
    /// Whether the socket is in it without asking.
    pub(crate) auto: bool,
    /// Whether it is told who is in it.
    pub(crate) presence: bool,
    /// What the user tells of itself there.
    pub(crate) data: Option<Word>,
    /// What is up to here in the log is not for the socket by this room, however late it is read: it was not in it yet.
    pub(crate) from: Since,
}

/// The rooms that `principal` is in by itself, in the order of the catalog: a user in the `auto` rooms that the claims fill, a visitor in the
/// `public` ones that the tenant fills.
pub(crate) fn auto_rooms(catalog: &Catalog, principal: &Principal) -> Vec<Allowed> {
    let visitor = principal.user.is_none();
    let mut found: Vec<Allowed> = Vec::new();
    for room in &catalog.rooms {
        let applies = if visitor { room.join == Join::Public } else { room.join == Join::Auto };
        if !applies {
            continue;
        }
        let Ok(name) = room.template.render(|name| own_param(catalog, principal, name)) else { continue };
        // Not what only looks like one of these.
        if !catalog.room(&name).is_some_and(|declared| std::ptr::eq(declared, room)) {
            continue;
        }
        if !found.iter().any(|known| known.name == name) && holds(catalog, room, principal, &name) {
            let (app, presence) = (room.crosses_tenants, room.presence);
            found.push(Allowed { name, app, auto: true, presence, data: None, from: Since::EVER });
        }
    }
    found
}

/// Whether `principal` may be in the room called `name`, which it or a declared message asks for.
pub(crate) fn may_join(catalog: &Catalog, principal: &Principal, name: &str) -> Option<Allowed> {
    if name.is_empty() || name.len() > MAX_ROOM_BYTES || name.chars().any(char::is_control) {
        return None;
    }
    let visitor = principal.user.is_none();
    let own = auto_rooms(catalog, principal);
    if let Some(room) = own.into_iter().find(|room| room.name == name) {
        return Some(room);
    }
    let room = catalog.room(name)?;
    let asked_for = match room.join {
        Join::Auto => false,
        Join::Request => !visitor,
        Join::Public => true,
    };
    (asked_for && holds(catalog, room, principal, name)).then(|| Allowed {
        name: name.to_owned(),
        app: room.crosses_tenants,
        auto: false,
        presence: room.presence,
        data: None,
        from: Since::EVER,
    })
}

/// A room parameter that the credential gives: the tenant, the user, or a claim of that name.
fn own_param<'a>(catalog: &Catalog, principal: &'a Principal, name: &str) -> Option<Cow<'a, str>> {
    if name == &*catalog.app.tenant {
        return Some(Cow::Borrowed(principal.tenant.as_str()));
    }
    let user = principal.user.as_deref()?;
    if name == "userId" {
        return Some(Cow::Borrowed(user));
    }
    match principal.claims.get(name)? {
        Value::String(text) => Some(Cow::Borrowed(text)),
        Value::Number(number) => Some(Cow::Owned(number.to_string())),
        Value::Bool(truth) => Some(Cow::Borrowed(if *truth { "true" } else { "false" })),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The tenant and the user in the name, if the template has them, are the principal's, and `when` holds. Everything unclear is a no.
fn holds(catalog: &Catalog, room: &Room, principal: &Principal, name: &str) -> bool {
    let Some(params) = room.template.match_room(name) else { return false };
    let is_own = |(param, value): &(&str, &str)| match *param {
        "userId" => principal.user.as_deref() == Some(value),
        param if param == &*catalog.app.tenant => room.crosses_tenants || *value == principal.tenant.as_str(),
        _ => true,
    };
    if !params.iter().all(is_own) {
        return false;
    }
    let Some(when) = &room.when else { return true };
    let params: Map<_, _> = params.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    when.eval(&[("user", &principal.claims), ("params", &Value::Object(params))]).unwrap_or(false)
}
