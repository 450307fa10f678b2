//! Nexuses that are there again after a restart of the daemon.
//!
//! A nexus needs a child that has every acknowledged write, by its record. It waits for the others as well, for a while:
//! one that comes later is copied anew. Whatever is missing is tried again until it is there, or its nexus is not wanted
//! any more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nexus::Record;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::NexusEntry;
use super::children::{Child, OpenChild};
use super::error::NexusError;
use crate::desired;
use crate::engine::Engine;
use crate::error::EngineError;

/// How long the start of the daemon waits for nexuses, so that hosts find them when they reconnect.
const START_LIMIT: Duration = Duration::from_secs(2);

/// How long a nexus waits for children that have everything, before it starts without them.
const GRACE: Duration = Duration::from_secs(20);

/// Pauses between two attempts: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Longer than any request holds a nexus.
const FOREVER: Duration = Duration::from_secs(3600);

/// What an attempt came to.
enum Attempt {
    Done,
    /// What is missing.
    Waits(String),
}

impl Engine {
    /// Brings back what was there before. Resolves when everything is, or after a moment: what is missing then goes on being
    /// tried.
    pub(crate) async fn restore_nexuses(self: &Arc<Self>, wishes: Vec<desired::Nexus>) -> Vec<EngineError> {
        let (begun, mut all_done) = mpsc::channel::<()>(1);
        let mut failures = Vec::new();
        for wish in wishes {
            if let Err(e) = self.nexuses().reserve(&wish.name, wish.uuid) {
                failures.push(e);
                continue;
            }
            let uuid = wish.uuid;
            let children = wish.children.iter().map(|uri| Child { uri: uri.clone(), device: None }).collect();
            let entry = NexusEntry { wish, mirror: None, children, waits_for: "it was not tried yet".into() };
            self.nexuses().insert(entry);
            tokio::spawn(self.clone().bring_back(uuid, begun.clone()));
        }
        drop(begun);
        let _ = tokio::time::timeout(START_LIMIT, all_done.recv()).await;
        let waiting = self.nexuses().list().into_iter().filter(|e| e.mirror.is_none());
        failures.extend(waiting.filter_map(|e| e.live().err()));
        failures
    }

    /// Tries until the nexus is there, and then until all its children are. `begun` is dropped when the nexus is there.
    async fn bring_back(self: Arc<Self>, uuid: Uuid, begun: mpsc::Sender<()>) {
        let since = Instant::now();
        let mut pause = PAUSES.0;
        loop {
            match self.try_nexus(uuid, since.elapsed() >= GRACE).await {
                Ok(Attempt::Done) => break,
                // It is not wanted any more, or the daemon ends.
                Err(_) => return,
                Ok(Attempt::Waits(why)) => self.nexuses().change(uuid, |e| e.waits_for = why),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
        drop(begun);
        pause = PAUSES.0;
        while let Ok(entry) = self.nexuses().find(uuid)
            && let Some(absent) = entry.children.iter().find(|c| c.device.is_none()).cloned()
        {
            tokio::time::sleep(pause).await;
            match self.try_child(uuid, &absent.uri).await {
                Ok(()) => pause = PAUSES.0,
                Err(e) => {
                    debug!(nexus = %entry.wish.name, "{e}");
                    pause = (pause * 2).min(PAUSES.1);
                    // The next one first, if there are several.
                    self.nexuses().change(uuid, |e| {
                        if let Some(at) = e.children.iter().position(|c| c.uri == absent.uri) {
                            let child = e.children.remove(at);
                            e.children.push(child);
                        }
                    });
                }
            }
        }
    }

    async fn try_child(&self, uuid: Uuid, uri: &str) -> Result<(), EngineError> {
        let _lock = self.nexuses().lock(uuid, FOREVER).await?;
        let entry = self.nexuses().find(uuid)?;
        match entry.child(uri) {
            Some(child) if child.device.is_none() => self.add_absent_child(&entry, child).await,
            _ => Ok(()),
        }
    }

    /// One attempt. An error says that there is nothing to be tried any more.
    async fn try_nexus(self: &Arc<Self>, uuid: Uuid, start_without: bool) -> Result<Attempt, EngineError> {
        let _lock = self.nexuses().lock(uuid, FOREVER).await?;
        let entry = self.nexuses().find(uuid)?;
        let uris: Vec<String> = entry.children.iter().map(|c| c.uri.clone()).collect();
        let (mut open, mut missing) = (Vec::new(), Vec::new());
        for child in self.open_children(&entry.wish.name, &uris).await {
            match child {
                Ok(child) => open.push(child),
                Err(EngineError::ShuttingDown) => return Err(EngineError::ShuttingDown),
                Err(e) => missing.push(e.to_string()),
            }
        }
        let known: Vec<Child> = open.iter().map(OpenChild::entry).collect();
        match self.start_again(&entry, open, missing, start_without).await {
            Ok(()) => {
                self.nexus_appeared(&entry.wish.name).await;
                info!(name = %entry.wish.name, %uuid, "nexus is there again");
                Ok(Attempt::Done)
            }
            Err(why) => {
                self.close_children(&known);
                Ok(Attempt::Waits(why))
            }
        }
    }

    /// Makes the mirror of the children that are there, if they suffice. An error says why they do not.
    async fn start_again(
        &self,
        entry: &NexusEntry,
        mut open: Vec<OpenChild>,
        missing: Vec<String>,
        start_without: bool,
    ) -> Result<(), String> {
        let wish = &entry.wish;
        let store = self.records().of(wish.uuid, &wish.info_key);
        let unread = |source| NexusError::Record { nexus: wish.name.clone(), source }.to_string();
        let last = store.load().await.map_err(unread)?;
        // Without a record they are what they were when the nexus was asked for: all alike.
        let (has_all, alone) = match &last {
            Some(record) => {
                let healthy: Vec<_> = open.iter().map(|c| record.is_healthy(c.known.uuid)).collect();
                (healthy, !record.clean_shutdown)
            }
            None => (vec![true; open.len()], false),
        };
        if !has_all.contains(&true) {
            return Err(format!(
                "none of its children that has every write can be opened: {}",
                missing.join("; ")
            ));
        }
        // After a crash one is the source of all others anyway.
        if !alone && !start_without && lacks_healthy(last.as_ref(), &open, wish.children.len()) {
            return Err(missing.join("; "));
        }
        let mirror = match self.start_mirror(wish, &open, store.clone()).await {
            Err(e) if has_all.contains(&false) => {
                // One that has to be rebuilt anyway must not keep the others from serving: it is tried again later.
                warn!(nexus = %wish.name, "{e}; it is tried without the children that lack writes");
                let (keep, leave): (Vec<_>, Vec<_>) =
                    open.into_iter().zip(has_all).partition(|(_, all)| *all);
                leave.iter().for_each(|(child, _)| self.close_child(&child.known));
                open = keep.into_iter().map(|(child, _)| child).collect();
                self.start_mirror(wish, &open, store).await
            }
            made => made,
        };
        let mirror = mirror.map_err(|e| e.to_string())?;
        let there: Vec<Child> = open.iter().map(OpenChild::entry).collect();
        self.nexuses().change(wish.uuid, |e| {
            e.mirror = Some(mirror);
            for child in &mut e.children {
                if let Some(open) = there.iter().find(|c| c.uri == child.uri) {
                    *child = open.clone();
                }
            }
        });
        Ok(())
    }
}

/// Whether a child that has everything is missing.
fn lacks_healthy(last: Option<&Record>, open: &[OpenChild], children: usize) -> bool {
    match last {
        Some(record) => {
            let is_open = |uuid: Uuid| open.iter().any(|c| c.known.uuid == uuid);
            record.children.iter().any(|c| c.healthy && !is_open(c.uuid))
        }
        None => open.len() < children,
    }
}
