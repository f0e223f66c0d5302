//! The catalogs of the five systems load and are complete, and the linter has next to nothing to say about them.

use std::path::Path;

use tidewire_core::catalog::{Catalog, Severity, lint, load};

const SYSTEMS: [&str; 5] = ["port-nimara", "ai-crm", "angel-investing", "alga-psa", "travel-umroh"];

fn catalog(system: &str) -> Catalog {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../apps").join(system);
    load(&dir).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn the_five_systems_have_126_events_22_queues_and_25_schedules() {
    let catalogs = SYSTEMS.map(catalog);
    let events = catalogs.each_ref().map(|catalog| catalog.events.len());
    assert_eq!(events, [47, 28, 16, 10, 25]);
    assert_eq!(events.iter().sum::<usize>(), 126);
    assert_eq!(catalogs.iter().map(|catalog| catalog.queues.len()).sum::<usize>(), 22);
    assert_eq!(catalogs.iter().map(|catalog| catalog.schedules.len()).sum::<usize>(), 25);
}

#[test]
fn the_linter_warns_of_one_queue_that_is_kept_on_purpose() {
    for system in SYSTEMS {
        let expected: &[&str] = match system {
            // The queue is declared for jobs that only the program knows.
            "angel-investing" => &["warning: queue \"analytics\": no job waits in it"],
            _ => &[],
        };
        let warnings: Vec<String> = lint(&catalog(system))
            .iter()
            .filter(|finding| finding.severity == Severity::Warning)
            .map(ToString::to_string)
            .collect();
        assert_eq!(warnings, expected, "{system}");
    }
}

#[test]
fn everything_has_a_description() {
    for system in SYSTEMS {
        let catalog = catalog(system);
        let events = catalog.events.values().map(|event| (&event.name, &event.description));
        let queues = catalog.queues.values().map(|queue| (&queue.name, &queue.description));
        let jobs = catalog.jobs.values().map(|job| (&job.name, &job.description));
        let schedules = catalog.schedules.values().map(|schedule| (&schedule.name, &schedule.description));
        for (name, description) in events.chain(queues).chain(jobs).chain(schedules) {
            assert!(!description.is_empty(), "{system}: {name}");
        }
    }
}
