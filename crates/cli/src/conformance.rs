//! `tidewire conformance`

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use tidewire::config::Parser;
use tokio::net::TcpListener;

/// The arguments of `tidewire conformance`.
#[derive(Args)]
pub(crate) struct Conformance {
    /// Where to listen.
    #[arg(long)]
    listen: SocketAddr,
    /// Expect clients with the MessagePack parser.
    #[arg(long)]
    msgpack: bool,
    /// Compress for clients that offer it.
    #[arg(long)]
    compression: bool,
    /// Milliseconds between two pings. The suites expect these.
    #[arg(long, default_value_t = 300)]
    heartbeat: u64,
}

impl Conformance {
    /// Serves until it is killed.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let parser = if self.msgpack { Parser::Msgpack } else { Parser::Json };
        crate::runtime()?.block_on(async {
            let listener =
                TcpListener::bind(self.listen).await.with_context(|| format!("cannot listen on {}", self.listen))?;
            println!("tidewire: conformance on http://{}", listener.local_addr()?);
            Ok(tidewire::conformance(listener, parser, self.compression, Duration::from_millis(self.heartbeat)).await?)
        })
    }
}
