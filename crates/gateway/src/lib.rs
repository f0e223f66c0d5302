//! The Socket.IO server: sessions, rooms, fan-out, recovery, limits.
