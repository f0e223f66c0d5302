//! The HTTP API, authentication and configuration of Tidewire.
