//! Load generators and the processes they load.
//!
//! They speak raw TCP with hand-written HTTP/1.1 and WebSocket, because client and server share a machine: what a client
//! library would spend on parsing is taken from what is measured. They check only what makes a number wrong if it were
//! not so (status codes, handshakes, lost connections); they are no conformance tests.

pub(crate) mod http;
pub(crate) mod peer;
pub(crate) mod sockets;
