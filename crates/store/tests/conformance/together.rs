//! The caller's own SQL in the transaction of a commit.

use rusqlite::{Connection, params};
use tidewire_core::commit::{Append, Commit, Committed, Enqueue, Idempotency};
use tidewire_core::store::JobQuery;
use tidewire_core::{Error, Result};

use crate::disk::{Disk, Opened};
use crate::world::{HOUR, World, any, code, commit, id, tenant, within};

/// A store whose file also holds a table of the application.
async fn shop() -> (Disk, Opened) {
    let disk = Disk::new();
    let opened = disk.open();
    let created = opened.sqlite.commit_with(|connection| {
        connection.execute_batch("CREATE TABLE orders (id TEXT PRIMARY KEY)").map_err(failed)?;
        Ok(commit(&tenant("a"), Vec::new(), Vec::new()))
    });
    within(created).await.expect("created");
    (disk, opened)
}

fn failed(error: rusqlite::Error) -> Error {
    Error::invalid("order.failed", error.to_string())
}

fn insert(connection: &Connection, order: &str) -> Result<()> {
    connection.execute("INSERT INTO orders (id) VALUES (?1)", params![order]).map(drop).map_err(failed)
}

/// Saves an order and what follows from it.
async fn place(opened: &Opened, order: &'static str, follows: Commit) -> Result<Committed> {
    let work = move |connection: &Connection| insert(connection, order).map(|()| follows);
    within(opened.sqlite.commit_with(work)).await
}

fn orders(disk: &Disk) -> Vec<String> {
    let people = Connection::open(disk.path()).expect("open");
    let mut statement = people.prepare("SELECT id FROM orders ORDER BY id").expect("statement");
    let orders = statement.query_map([], |row| row.get(0)).expect("query").collect::<rusqlite::Result<_>>();
    orders.expect("orders")
}

fn placed(world: &World) -> Commit {
    commit(&tenant("a"), vec![world.event("order.placed")], vec![world.job("send")])
}

async fn jobs(world: &World) -> usize {
    within(world.store.jobs(JobQuery { limit: 500, ..JobQuery::default() })).await.expect("jobs").items.len()
}

#[tokio::test]
async fn it_joins_the_transaction() {
    let (disk, opened) = shop().await;
    let committed = place(&opened, "o1", placed(&opened.world)).await.expect("placed");
    assert_eq!((committed.events.len(), committed.jobs.len()), (1, 1));
    assert_eq!(orders(&disk), ["o1"]);
    assert_eq!(opened.world.head(&tenant("a")).await, 1);
    assert_eq!(opened.world.claim_one().await.job.id, committed.jobs[0].id);
    let image = disk.killed();
    assert_eq!((orders(&image), image.open().world.head(&tenant("a")).await), (vec!["o1".to_owned()], 1));
}

#[tokio::test]
async fn an_error_undoes_it() {
    let (disk, opened) = shop().await;
    place(&opened, "o1", placed(&opened.world)).await.expect("placed");
    assert_eq!(code(place(&opened, "o1", placed(&opened.world)).await), "order.failed");
    let refused = opened.sqlite.commit_with(|connection| {
        insert(connection, "o2")?;
        Err(Error::conflict("order.sold_out", "there is none left"))
    });
    assert_eq!(code(within(refused).await), "order.sold_out");
    assert_eq!((orders(&disk), opened.world.head(&tenant("a")).await), (vec!["o1".to_owned()], 1));
}

#[tokio::test]
async fn a_refused_commit_undoes_it() {
    let (disk, opened) = shop().await;
    let world = &opened.world;
    // The tenant is first seen in the refused commit; afterwards it is as good as any.
    let wrong = Append { stream: Some("s".into()), expected_version: Some(4), ..world.event("wrong") };
    let refused = commit(&tenant("new"), vec![wrong], vec![Enqueue { queue: "new".into(), ..world.job("new") }]);
    assert_eq!(code(place(&opened, "o1", refused).await), "event.version_conflict");
    assert!(orders(&disk).is_empty());
    let follows =
        commit(&tenant("new"), vec![world.event("x")], vec![Enqueue { queue: "new".into(), ..world.job("new") }]);
    place(&opened, "o1", follows).await.expect("placed");
    assert_eq!((world.head(&tenant("new")).await, world.claim(any()).await.len()), (1, 1));
}

/// A commit that is a repetition writes nothing, and the rows beside it are part of it.
#[tokio::test]
async fn a_repeated_commit_undoes_it() {
    let (disk, opened) = shop().await;
    let world = &opened.world;
    let once = |tenant_name| Commit {
        dedup: Some(("payment-1".to_owned(), HOUR)),
        ..commit(&tenant(tenant_name), vec![world.event("paid")], vec![world.job("ship")])
    };
    assert!(!place(&opened, "o1", once("a")).await.expect("placed").deduplicated);
    assert!(place(&opened, "o2", once("a")).await.expect("repeated").deduplicated);
    assert_eq!((orders(&disk), world.head(&tenant("a")).await, jobs(world).await), (vec!["o1".to_owned()], 1, 1));
    place(&opened, "o3", once("b")).await.expect("another tenant's key");

    let keyed = || Commit {
        idempotency: Some(Idempotency { key: "request-1".to_owned(), digest: vec![1] }),
        ..commit(&tenant("a"), vec![world.event("paid")], Vec::new())
    };
    let first = place(&opened, "o4", keyed()).await.expect("placed");
    let again = place(&opened, "o5", keyed()).await.expect("repeated");
    assert_eq!(first.events[0].id, again.events[0].id);
    assert_eq!((orders(&disk), world.head(&tenant("a")).await), (["o1", "o3", "o4"].map(str::to_owned).to_vec(), 2));
}

#[tokio::test]
async fn a_panic_undoes_it_and_the_store_goes_on() {
    let (disk, mut opened) = shop().await;
    let panicking = opened.sqlite.commit_with(|connection| {
        insert(connection, "o1").expect("inserted");
        panic!("a bug of the application");
    });
    let error = within(panicking).await.expect_err("it panicked");
    assert_eq!(error.code(), "internal");
    assert!(error.to_string().contains("a bug of the application"), "{error}");
    assert!(orders(&disk).is_empty());
    place(&opened, "o2", placed(&opened.world)).await.expect("placed");
    assert_eq!((orders(&disk), opened.world.head(&tenant("a")).await), (vec!["o2".to_owned()], 1));
    assert!(opened.fatal.try_recv().is_err());
}

/// Refused ones leave their neighbours of the same transaction alone.
#[tokio::test]
async fn good_and_bad_ones_share_a_turn() {
    let (disk, opened) = shop().await;
    let world = &opened.world;
    let hold = world.hold().await;
    let mut answers = Vec::new();
    for number in 0..20 {
        answers.push(world.store.commit(commit(&tenant("a"), vec![world.event("plain")], vec![world.job("plain")])));
        let follows = commit(&tenant(&format!("t{number}")), vec![world.event("placed")], vec![world.job("placed")]);
        let work = move |connection: &Connection| {
            insert(connection, &format!("o{number:02}"))?;
            if number % 2 == 1 { Err(Error::conflict("order.sold_out", "there is none left")) } else { Ok(follows) }
        };
        answers.push(opened.sqlite.commit_with(work));
    }
    drop(hold);
    let mut good = 0;
    for answer in answers {
        good += usize::from(within(answer).await.is_ok());
    }
    assert_eq!((good, orders(&disk).len(), jobs(world).await), (30, 10, 30));
    assert_eq!(world.head(&tenant("a")).await, 20);
    for number in 0..20 {
        assert_eq!(world.head(&tenant(&format!("t{number}"))).await, u64::from(number % 2 == 0));
    }
    assert_eq!(world.claim(any()).await.len(), 30);
}

/// The work sees what was enqueued just before it in the same turn.
#[tokio::test]
async fn the_work_reads_its_own_turn() {
    let (_disk, opened) = shop().await;
    let world = &opened.world;
    let hold = world.hold().await;
    let job = Enqueue { id: id("j1"), given_id: true, ..world.job("work") };
    let before = world.store.commit(commit(&tenant("a"), vec![world.event("x")], vec![job]));
    let follows = commit(&tenant("a"), Vec::new(), Vec::new());
    let counting = opened.sqlite.commit_with(move |connection| {
        let count = |sql| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(failed);
        let seen =
            (count("SELECT count(*) FROM event_log WHERE tenant = 'a'")?, count("SELECT count(*) FROM job_list")?);
        if seen == (1, 1) { Ok(follows) } else { Err(Error::conflict("order.blind", format!("{seen:?}"))) }
    });
    drop(hold);
    within(before).await.expect("commit");
    within(counting).await.expect("it saw both");
}
