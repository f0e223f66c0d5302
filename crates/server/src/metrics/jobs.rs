//! The numbers of jobs, by queue.

use tidewire_core::measure::Distribution;
use tidewire_core::store::{Counts, Figures, QueueFigures};

use super::exposition::{Exposition, Kind};

pub(super) fn write(figures: &Figures, counts: &Counts, out: &mut Exposition) {
    let mut states = out.family("tidewire_jobs", Kind::Gauge, "Jobs that are kept, by state.");
    for (queue, counts) in counts {
        for (state, count) in counts {
            states.sample(&[("queue", queue), ("state", state.as_str())], count);
        }
    }
    let leases = "Jobs in the hands of workers now.";
    out.single("tidewire_job_leases", Kind::Gauge, leases, figures.leases);

    type Number = fn(&QueueFigures) -> u64;
    let numbers: [(&'static str, &str, Number); 3] = [
        ("tidewire_jobs_enqueued_total", "Jobs that were enqueued.", |queue| queue.enqueued),
        ("tidewire_job_runs_started_total", "Runs that began.", |queue| queue.started),
        ("tidewire_job_runs_lost_total", "Runs whose worker did not renew its lease.", |queue| queue.lost),
    ];
    for (name, help, number) in numbers {
        let mut family = out.family(name, Kind::Counter, help);
        figures.queues.iter().for_each(|(queue, of)| family.sample(&[("queue", queue)], number(of)));
    }
    let mut ended =
        out.family("tidewire_job_runs_ended_total", Kind::Counter, "Runs that ended, by what came of them.");
    for (queue, of) in &figures.queues {
        for (outcome, count) in [
            ("completed", of.completed),
            ("retried", of.retried),
            ("failed", of.failed),
            ("dead", of.dead),
            ("cancelled", of.cancelled),
            ("returned", of.returned),
        ] {
            ended.sample(&[("queue", queue), ("outcome", outcome)], count);
        }
    }

    type Times = fn(&QueueFigures) -> &Distribution;
    let times: [(&'static str, &str, Times); 2] = [
        ("tidewire_job_wait_seconds", "From when a job was due until a run began.", |queue| &queue.wait),
        ("tidewire_job_run_seconds", "How long runs took.", |queue| &queue.run),
    ];
    for (name, help, distribution) in times {
        let mut family = out.family(name, Kind::Histogram, help);
        figures.queues.iter().for_each(|(queue, of)| family.histogram(&[("queue", queue)], distribution(of)));
    }
}
