use std::sync::mpsc;

use tokio::sync::oneshot;

use super::*;

fn readers() -> (tempfile::TempDir, Arc<Readers>) {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("tidewire.db");
    Connection::open(&path).expect("open").execute_batch("CREATE TABLE t (x)").expect("schema");
    (directory, Arc::new(Readers::new(&path)))
}

/// A read that has begun and goes on until its sender is dropped.
async fn begin(readers: &Arc<Readers>) -> (tokio::task::JoinHandle<Result<()>>, mpsc::Sender<()>) {
    let (begun, has_begun) = oneshot::channel();
    let (release, released) = mpsc::channel::<()>();
    let readers = readers.clone();
    let task = tokio::spawn(async move {
        let read = move |_: &Connection| {
            begun.send(()).expect("the test waits");
            released.recv().expect_err("nothing is sent");
            Ok(())
        };
        readers.read(read).await
    });
    has_begun.await.expect("begun");
    (task, release)
}

#[tokio::test]
async fn a_read_that_nobody_waits_for_still_counts() {
    let (_directory, readers) = readers();
    let mut releases = Vec::new();
    for _ in 0..CONNECTIONS {
        let (task, release) = begin(&readers).await;
        task.abort();
        assert!(task.await.expect_err("aborted").is_cancelled());
        releases.push(release);
    }
    assert_eq!(readers.permits.available_permits(), 0);
    drop(releases);
    readers.read(|_| Ok(())).await.expect("there is room again");
}

#[tokio::test]
async fn a_read_that_outlives_the_store_closes_its_connection() {
    let (_directory, readers) = readers();
    let (task, release) = begin(&readers).await;
    readers.close();
    drop(release);
    task.await.expect("joined").expect("it began before the close");
    assert!(readers.idle.lock().is_empty());
    assert_eq!(readers.read(|_| Ok(())).await.expect_err("closed").code(), "unavailable");
}
