//! Who is here: lists for operators, and putting clients out.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;
use serde_json::json;
use tidewire_core::store::Page;
use tidewire_core::{Error, Result, TenantId, Timestamp};

use crate::gateway::{Gateway, Shared};
use crate::session::Closing;
use crate::socket::Socket;

/// One socket, as an operator sees it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionInfo {
    /// What the client knows as `socket.id`.
    pub socket_id: String,
    /// Its tenant.
    pub tenant: TenantId,
    /// Its user; absent for visitors.
    pub user_id: Option<String>,
    /// The roles of that user.
    pub roles: Vec<String>,
    /// Its namespace.
    pub namespace: String,
    /// `websocket`, `polling` or, for server-sent events, `sse`.
    pub transport: &'static str,
    /// Where the client is, as far as that is known.
    pub address: Option<IpAddr>,
    /// When it joined.
    pub connected_at: Timestamp,
    /// The rooms it is in.
    pub rooms: Vec<String>,
    /// Bytes that wait for it.
    pub bytes_queued: usize,
    /// Whether it is being caught up from the log.
    pub behind: bool,
}

/// One room that has members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RoomInfo {
    /// Whose; absent for rooms that span tenants.
    pub tenant: Option<TenantId>,
    /// Its name.
    pub room: String,
    /// How many sockets are in it.
    pub members: usize,
}

/// Which sockets are meant: those that fit everything that is given. The default means all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whom {
    /// Only this tenant's.
    pub tenant: Option<TenantId>,
    /// Only this user's.
    pub user: Option<String>,
    /// Only those in this room.
    pub room: Option<String>,
    /// Only the one with this `socket.id`.
    pub socket: Option<String>,
}

impl Whom {
    fn means(&self, socket: &Socket) -> bool {
        self.user.as_deref().is_none_or(|user| socket.user.as_deref() == Some(user))
            && self.socket.as_deref().is_none_or(|sid| *socket.sid == *sid)
            && self.room.as_deref().is_none_or(|room| socket.is_in(room))
    }

    fn sockets(&self, shared: &Shared) -> Vec<Arc<Socket>> {
        let mut sockets = shared.sockets(self.tenant.as_ref());
        sockets.retain(|socket| self.means(socket));
        sockets
    }
}

impl Gateway {
    /// A page of sockets, the one that joined first in front. Code `cursor.invalid`.
    pub fn connections(&self, whom: &Whom, cursor: Option<&str>, limit: usize) -> Result<Page<ConnectionInfo>> {
        let wrong = |_| Error::invalid("cursor.invalid", "the cursor is not one of this list");
        let after: u64 = cursor.map_or(Ok(0), str::parse).map_err(wrong)?;
        let mut sockets = self.shared().sockets(whom.tenant.as_ref());
        sockets.retain(|socket| socket.key > after && whom.means(socket));
        sockets.sort_unstable_by_key(|socket| socket.key);
        let next_cursor = (sockets.len() > limit).then(|| sockets[limit - 1].key.to_string());
        sockets.truncate(limit);
        Ok(Page { items: sockets.iter().map(|socket| info(socket)).collect(), next_cursor })
    }

    /// A page of rooms by tenant and name: a tenant's, or everybody's and those that span tenants.
    pub fn rooms(&self, tenant: Option<&TenantId>, cursor: Option<&str>, limit: usize) -> Page<RoomInfo> {
        let shared = self.shared();
        // A tenant's name has no space, so the order of these texts is that of tenant and name.
        let place = |room: &RoomInfo| format!("{} {}", room.tenant.as_ref().map_or("", TenantId::as_str), room.room);
        let mut found: Vec<(String, RoomInfo)> = Vec::new();
        let mut add = |tenant: Option<&TenantId>, rooms: &crate::hub::Rooms| {
            let infos = rooms.sizes().map(|(name, members)| RoomInfo {
                tenant: tenant.cloned(),
                room: name.to_owned(),
                members,
            });
            let placed = infos.map(|info| (place(&info), info));
            found.extend(placed.filter(|(place, _)| cursor.is_none_or(|cursor| place.as_str() > cursor)));
        };
        match tenant {
            Some(id) => {
                if let Some(tenant) = shared.hub.find(id) {
                    add(Some(id), &tenant.rooms.read());
                }
            }
            None => {
                add(None, &shared.hub.across.rooms.read());
                shared.hub.all().iter().for_each(|tenant| add(Some(&tenant.id), &tenant.rooms.read()));
            }
        }
        found.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let next_cursor = (found.len() > limit).then(|| found[limit - 1].0.clone());
        found.truncate(limit);
        Page { items: found.into_iter().map(|(_, info)| info).collect(), next_cursor }
    }

    /// Closes transports. Their clients come back by themselves and show their credential again: after a revoked session or a changed role
    /// they get in, or not, by what holds now. Answers how many sockets were closed.
    pub fn disconnect(&self, whom: &Whom) -> usize {
        let sockets = whom.sockets(self.shared());
        sockets.iter().for_each(|socket| socket.session.close(Closing::Disconnected));
        sockets.len()
    }

    /// Puts out every socket whose credential [`Authenticate::is_revoked`](crate::Authenticate::is_revoked) by now: it is told
    /// `auth:revoked` and its transport is closed. Answers how many there were.
    pub fn end_revoked(&self) -> usize {
        let shared = self.shared();
        let mut sockets = shared.sockets(None);
        sockets.retain(|socket| shared.auth.is_revoked(&socket.principal()));
        sockets.iter().for_each(put_out);
        sockets.len()
    }
}

/// Tells a client that its credential is no longer good, and closes its transport.
pub(crate) fn put_out(socket: &Arc<Socket>) {
    let told = json!({ "code": "auth.revoked", "message": "the credential has been revoked; log in again" });
    socket.emit("auth:revoked", &told.to_string());
    socket.session.close(Closing::Revoked);
}

fn info(socket: &Socket) -> ConnectionInfo {
    ConnectionInfo {
        socket_id: (*socket.sid).to_owned(),
        tenant: socket.tenant.id.clone(),
        user_id: socket.user.as_deref().map(str::to_owned),
        roles: socket.principal().roles.to_vec(),
        namespace: socket.namespace_name().to_owned(),
        transport: socket.session.transport_name(),
        address: socket.session.handshake.address,
        connected_at: socket.since,
        rooms: socket.rooms().iter().map(|room| (**room).to_owned()).collect(),
        bytes_queued: socket.session.outbox.bytes(),
        behind: socket.is_behind(),
    }
}
