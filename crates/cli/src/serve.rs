//! `tidewire serve`

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use tidewire::{App, Config};
use tokio::net::TcpListener;

/// Where a server listens unless it is told otherwise.
pub(crate) const DEFAULT_LISTEN: &str = "127.0.0.1:7400";

/// The arguments of `tidewire serve`. They win over the environment, which wins over the file.
#[derive(Args)]
pub(crate) struct Serve {
    /// The folder with the app.toml.
    #[arg(long, default_value = "apps/port-nimara")]
    app: PathBuf,
    /// A configuration file (TOML).
    #[arg(long)]
    config: Option<PathBuf>,
    /// Where to listen. Default 127.0.0.1:7400.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// The data directory. Default ./.tidewire.
    #[arg(long)]
    data: Option<PathBuf>,
    /// sqlite:FILE or memory:. Default: tidewire.db in the data directory.
    #[arg(long)]
    store: Option<String>,
}

impl Serve {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let mut config = load_config(self.config.as_deref())?;
        config.listen = self.listen.or(config.listen);
        config.data = self.data.or(config.data);
        config.store = self.store.or(config.store);
        if config.auth.admin_key.is_none() && config.keys.is_empty() {
            bail!("no API key is configured, so nobody could publish: set TIDEWIRE_ADMIN_KEY or [[keys]]");
        }
        crate::runtime()?.block_on(async {
            let listener = listen(&config).await?;
            let app = App::builder(&self.app).config(config).on_fatal(crate::on_fatal).build().await?;
            // Before the line that says it is ready: who reads that may stop it at once.
            let told = app.shutdown_signal();
            println!(
                "tidewire: {} on http://{} ({})",
                app.catalog().app.name,
                listener.local_addr()?,
                app.store().durability().as_str()
            );
            app.serve_until(listener, app.router(), told).await;
            Ok(())
        })
    }
}

/// The configuration of a file and the environment.
pub(crate) fn load_config(file: Option<&Path>) -> anyhow::Result<Config> {
    let name = file.map(|file| file.display().to_string());
    let text = match file {
        Some(file) => Some(std::fs::read_to_string(file).with_context(|| format!("{}", file.display()))?),
        None => None,
    };
    let environment =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    Ok(Config::load(name.as_deref().zip(text.as_deref()), environment)?)
}

/// The listener of a configuration.
pub(crate) async fn listen(config: &Config) -> anyhow::Result<TcpListener> {
    let address = match config.listen {
        Some(address) => address,
        None => DEFAULT_LISTEN.parse()?,
    };
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}
