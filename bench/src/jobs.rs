//! Jobs: whole lives, enqueueing, draining, latency and delay, in process and over HTTP, beside BullMQ on Redis
//! and beanstalkd in the same run.

mod backlog;
mod beanstalkd;
mod bullmq;
mod local;
mod neighbour;
mod remote;

use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::report::Runs;

/// Jobs that are enqueued and not yet completed.
const IN_FLIGHT: usize = 512;
/// Jobs per call where many are enqueued at once, and per lease over HTTP.
const BULK: usize = 100;
/// Jobs that wait before a drain begins.
const PREPARED: usize = 200_000;
/// Jobs a second at low load.
const LOW_LOAD: u64 = 100;
/// Jobs that are due one after the other over [`SPREAD`].
const DELAYED: usize = 2_000;
/// The time over which delayed jobs are spread.
const SPREAD: Duration = Duration::from_secs(10);
/// How long the noisy neighbour is watched when `--seconds` is not given.
const WATCHED: Duration = Duration::from_secs(20);

/// What to measure.
#[derive(Args, Default)]
pub(crate) struct Jobs {
    /// Measure long backlogs instead: takes minutes, and about 0.7 GB of disk per million jobs.
    #[arg(long)]
    big: bool,
    /// Jobs of the long backlog.
    #[arg(long, default_value_t = 10_000_000)]
    pending: u64,
    /// Leave BullMQ and beanstalkd out.
    #[arg(long)]
    no_peer: bool,
}

impl Jobs {
    /// `time` is that of each timed measurement, `None` for its default.
    pub(crate) async fn run(&self, runs: &Runs, time: Option<Duration>) -> Result<()> {
        let seconds = time.unwrap_or(crate::TIME);
        if self.big {
            return backlog::run(runs, seconds, self.pending).await;
        }
        local::run(runs, seconds).await?;
        remote::run(runs, seconds).await?;
        neighbour::run(runs, time.unwrap_or(WATCHED)).await?;
        if !self.no_peer {
            bullmq::run(runs, seconds).await?;
            beanstalkd::run(runs, seconds).await?;
        }
        Ok(())
    }
}
