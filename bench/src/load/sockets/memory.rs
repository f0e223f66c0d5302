//! What a client keeps to come back to its session, and whether it missed anything.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use anyhow::{Context, Result};

/// One client's session, over its connections. It counts every event that does not stand right behind the one before it, so it is for
/// clients that get every event of their tenant.
#[derive(Default)]
pub(crate) struct Memory {
    /// The token of the session and the epoch of the log.
    session: Mutex<Option<(String, String)>>,
    position: AtomicU64,
    faults: AtomicU64,
    recovered: AtomicU64,
}

impl Memory {
    /// The last position that the client was told of.
    pub(crate) fn position(&self) -> u64 {
        self.position.load(Ordering::SeqCst)
    }

    /// Events that came twice or before one that was missing.
    pub(crate) fn faults(&self) -> u64 {
        self.faults.load(Ordering::SeqCst)
    }

    /// How often the server said that it gave everything.
    pub(crate) fn recovered(&self) -> u64 {
        self.recovered.load(Ordering::SeqCst)
    }

    /// The `pid` and the offset to come back with.
    pub(super) fn session(&self) -> Option<(String, String)> {
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        session.as_ref().map(|(pid, epoch)| (pid.clone(), format!("{epoch}.{}", self.position())))
    }

    /// The answer to CONNECT, without its type.
    pub(super) fn connected(&self, answer: &str) -> Result<()> {
        let json = &answer[answer.find('{').context("the answer to CONNECT has no data")?..];
        let data: serde_json::Value = serde_json::from_str(json)?;
        let pid = data["pid"].as_str().context("the server gave no pid")?;
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let epoch = session.take().map(|(_, epoch)| epoch).unwrap_or_default();
        *session = Some((pid.to_owned(), epoch));
        Ok(())
    }

    /// Notes the offset, `"EPOCH.POSITION"]` at the end of an event.
    pub(super) fn note(&self, packet: &[u8], is_greeting: bool) {
        let Some((epoch, position)) = offset(packet) else { return };
        let before = self.position.swap(position, Ordering::SeqCst);
        if !is_greeting {
            self.faults.fetch_add(u64::from(position != before + 1), Ordering::SeqCst);
            return;
        }
        if packet.windows(16).any(|window| window == b"\"recovered\":true") {
            self.recovered.fetch_add(1, Ordering::SeqCst);
            self.faults.fetch_add(u64::from(position != before), Ordering::SeqCst);
        }
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = session.as_mut() {
            epoch.clone_into(known);
        }
    }
}

fn offset(packet: &[u8]) -> Option<(&str, u64)> {
    let text = std::str::from_utf8(packet).ok()?.strip_suffix("\"]")?;
    let (_, offset) = text.rsplit_once('"')?;
    let (epoch, position) = offset.rsplit_once('.')?;
    Some((epoch, position.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_and_a_double_are_faults_and_a_greeting_begins_anew() {
        let memory = Memory::default();
        memory.connected(r#"{"sid":"a","pid":"p"}"#).unwrap();
        memory.note(br#"42["connected",{"recovered":false},"e.7"]"#, true);
        memory.note(br#"42["bench",{"t":1},"e.8"]"#, false);
        assert_eq!((memory.position(), memory.faults(), memory.recovered()), (8, 0, 0));
        assert_eq!(memory.session(), Some(("p".to_owned(), "e.8".to_owned())));
        memory.note(br#"42["bench",{"t":1},"e.10"]"#, false);
        memory.note(br#"42["bench",{"t":1},"e.10"]"#, false);
        assert_eq!(memory.faults(), 2);
        memory.note(br#"42["connected",{"recovered":true},"e.10"]"#, true);
        assert_eq!((memory.faults(), memory.recovered()), (2, 1));
        memory.note(br#"42["connected",{"recovered":true},"e.12"]"#, true);
        assert_eq!(memory.faults(), 3, "said to be whole, and two are missing");
    }
}
