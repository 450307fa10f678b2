//! Keeps the account of regions that are being written on the children ([`crate::intent`]).
//!
//! - Its name stands in the notes of the nexus, so that an account of another time is none. It changes when a child is taken
//!   out for good: that one's page must not count when it comes back.
//! - It begins with every region: what was written before may not be flushed. They go when everything was.
//! - Pages are written to children in sync only. A child that gets into sync first gets a page that says that all regions
//!   may differ, then is recorded, and then gets the true one.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use aio::facade::IoError;
use aio::gate::Gate;
use aio::{BlockDevice, BlockRange, Descriptor, IoStatus, check};
use core::time::Duration;
use uuid::Uuid;

use super::open::AccountNote;
use super::{Home, Life, find, note};
use crate::child::ChildState;
use crate::intent::{Bits, Intent, PAGE_BYTES, PLACES_BYTES, Page, ranges};
use crate::rebuild::Job;
use crate::shared::Shared;

/// How long a page that could not be written is waited with.
const RETRY: Duration = Duration::from_millis(1);
/// No region, and every one.
const NONE: Bits = [0; PAGE_BYTES / 8 - 8];
const ALL: Bits = [u64::MAX; PAGE_BYTES / 8 - 8];

/// Where pages of one child are written.
struct End {
    device: Arc<dyn BlockDevice>,
    open: Descriptor,
    /// The place that is written next.
    next: usize,
}

/// See the module.
pub(super) struct Account {
    name: u128,
    sequence: u64,
    /// Regions whose bits are waited for.
    wanted: Box<Bits>,
    /// A task writes pages.
    at_work: bool,
    ends: BTreeMap<usize, End>,
    /// One page at a time.
    pub(super) one: Rc<Gate>,
}

impl Default for Account {
    fn default() -> Self {
        Self {
            name: 0,
            sequence: 0,
            wanted: Box::new(NONE),
            at_work: false,
            ends: BTreeMap::new(),
            one: Rc::default(),
        }
    }
}

/// Tells the home core that writes wait for the bits of these ranges. False when its mailbox is full.
pub(crate) fn want(shared: &Arc<Shared>, wanted: Vec<BlockRange>) -> bool {
    let nexus = shared.uuid;
    let told = shared.home.post(move || {
        if let Some(home) = find(nexus) {
            for range in wanted {
                let bits = home.shared.intent.bits_of(range);
                home.account.borrow_mut().want(&bits);
            }
            home.write_pages();
        }
    });
    told.is_ok()
}

impl Account {
    fn want(&mut self, bits: &Bits) {
        self.wanted.iter_mut().zip(bits).for_each(|(mine, bits)| *mine |= bits);
    }
}

/// The newest page of a child, and the place that is to be written next. `None`: it has none that can be read.
async fn read_page(open: &Descriptor) -> Option<(Page, usize)> {
    let len = page_len(open);
    let mut newest: Option<(Page, usize)> = None;
    for (at, place) in PLACES_BYTES.into_iter().enumerate() {
        let buf = aio::Core::current()?.pools().ok()?.alloc(len)?;
        let (read, buf) = open.read_at(place, len, buf).await;
        let page = read.ok().and_then(|()| Page::decode(&buf[..PAGE_BYTES]));
        if let Some(page) = page
            && newest.as_ref().is_none_or(|(old, _)| old.sequence < page.sequence)
        {
            newest = Some((page, 1 - at));
        }
    }
    newest
}

/// Length of what is written at a place, in bytes.
fn page_len(open: &Descriptor) -> u32 {
    (PAGE_BYTES as u32).max(open.geometry().block_bytes)
}

impl Home {
    /// Begins the account, where one is needed or was kept before. For a nexus that nobody uses yet.
    pub(crate) async fn begin_account(self: &Rc<Self>) {
        let before = self.notes.borrow().account().map(|note| note.name);
        let (children, plain) = {
            let state = self.state.borrow();
            let children = state.children.iter().flatten();
            (children.clone().count(), children.clone().any(|c| c.device.marks().is_none()))
        };
        if before.is_none() && !(plain && children > 1) {
            return;
        }
        let pages = self.read_pages().await;
        let size = self.shared.size();
        let mut shift = Intent::shift_for(size, self.shared.geometry.block_bytes);
        let known = |name| {
            let in_sync = pages.iter().filter(|(online, _)| *online);
            in_sync.clone().count() > 0
                && in_sync.clone().all(|(_, page)| page.as_ref().is_some_and(|p| p.name == name))
        };
        let mut bits = NONE;
        match before.filter(|name| known(*name)) {
            Some(name) => {
                let ours = pages.iter().filter_map(|(_, page)| page.as_ref().filter(|p| p.name == name));
                for page in ours {
                    shift = page.region_shift;
                    bits.iter_mut().zip(&*page.bits).for_each(|(bits, page)| *bits |= page);
                    let mut account = self.account.borrow_mut();
                    account.sequence = account.sequence.max(page.sequence);
                }
                self.account.borrow_mut().name = name;
            }
            None if plain && children > 1 => {
                self.rename_account().await;
                bits = ALL;
            }
            // What is written from now on is not kept account of: an old one must not count again.
            None => {
                self.notes.borrow_mut().set_account(None);
                self.save_notes().await;
                return;
            }
        }
        self.shared.intent.begin(shift, &bits);
        let one = self.account.borrow().one.clone();
        let _pass = one.enter().await;
        // One that could not be written is written again before the first write.
        let _ = self.put_page(&bits).await;
    }

    /// Pages of all children, and whether each is in sync.
    async fn read_pages(&self) -> Vec<(bool, Option<Page>)> {
        let children: Vec<_> = {
            let state = self.state.borrow();
            let children = state.children.iter().enumerate();
            children.filter_map(|(place, c)| c.as_ref().map(|c| (place, c.device.clone(), c.state))).collect()
        };
        let mut pages = Vec::new();
        for (place, device, state) in children {
            let page = self.page_of(place, device).await;
            pages.push((state == ChildState::Online, page));
        }
        pages
    }

    async fn page_of(&self, place: usize, device: Arc<dyn BlockDevice>) -> Option<Page> {
        let open = self.reach(place, device).await.ok()?;
        let (page, next) = read_page(&open).await?;
        if let Some(end) = self.account.borrow_mut().ends.get_mut(&place) {
            end.next = next;
        }
        Some(page)
    }

    /// Where the child at `place` is reached.
    async fn reach(&self, place: usize, device: Arc<dyn BlockDevice>) -> Result<Descriptor, IoStatus> {
        if let Some(end) = self.account.borrow().ends.get(&place)
            && Arc::ptr_eq(&end.device, &device)
        {
            return Ok(end.open.clone());
        }
        let open = Descriptor::open(device.clone()).await.map_err(|_| check::REMOVED)?;
        let next = read_page(&open).await.map_or(0, |(_, next)| next);
        self.account.borrow_mut().ends.insert(place, End { device, open: open.clone(), next });
        Ok(open)
    }

    /// A child is to be added: begins the account if it is needed from now on.
    pub(super) async fn account_for(self: &Rc<Self>, new: &dyn BlockDevice) {
        let plain = {
            let state = self.state.borrow();
            new.marks().is_none() || state.children.iter().flatten().any(|c| c.device.marks().is_none())
        };
        if self.shared.intent.is_on() || !plain {
            return;
        }
        self.rename_account().await;
        let shift = Intent::shift_for(self.shared.size(), self.shared.geometry.block_bytes);
        self.shared.intent.begin(shift, &ALL);
        self.write_pages_anew();
    }

    /// Another name from now on, which the children in sync know: pages with the old one do not count any more.
    async fn rename_account(&self) {
        let name = Uuid::new_v4().as_u128();
        self.account.borrow_mut().name = name;
        let members = {
            let state = self.state.borrow();
            let online = state.children.iter().flatten().filter(|c| c.state == ChildState::Online);
            online.map(|c| c.uuid).collect()
        };
        self.notes.borrow_mut().set_account(Some(AccountNote { name, members }));
        // Without it, the account is of no use after a restart.
        self.save_notes().await;
    }

    async fn save_notes(&self) -> bool {
        let text = self.notes.borrow().text();
        self.store.save_notes(&text).await.is_ok()
    }

    /// A child is taken out for good: what it misses from now on is not kept account of.
    pub(super) async fn forget_in_account(self: &Rc<Self>, place: usize) {
        if self.shared.intent.is_on() {
            self.rename_account().await;
            self.account.borrow_mut().ends.remove(&place);
            self.write_pages_anew();
        }
    }

    /// Has the children get a page soon, whatever is wanted.
    pub(super) fn write_pages_anew(self: &Rc<Self>) {
        if self.shared.intent.is_on() {
            let bits = self.shared.intent.durable();
            self.account.borrow_mut().want(&bits);
            // Something has to be wanted.
            self.account.borrow_mut().wanted[0] |= 1;
            self.write_pages();
        }
    }

    /// Writes pages until nothing is wanted any more.
    fn write_pages(self: &Rc<Self>) {
        if core::mem::replace(&mut self.account.borrow_mut().at_work, true) {
            return;
        }
        let home = self.clone();
        // Detached: it ends when there is nothing left.
        drop(self.core.spawn(async move {
            let one = home.account.borrow().one.clone();
            loop {
                let pass = one.enter().await;
                let wanted = core::mem::replace(&mut home.account.borrow_mut().wanted, Box::new(NONE));
                if *wanted == NONE || !home.keeps_account() {
                    break;
                }
                let mut bits = home.shared.intent.durable();
                bits.iter_mut().zip(&*wanted).for_each(|(bits, wanted)| *bits |= wanted);
                if home.put_page(&bits).await {
                    home.shared.intent.has_become_durable(&bits);
                    continue;
                }
                home.account.borrow_mut().want(&wanted);
                drop(pass);
                home.core.sleep(RETRY).await;
            }
            home.account.borrow_mut().at_work = false;
        }));
    }

    fn keeps_account(&self) -> bool {
        matches!(self.state.borrow().life, Life::Open | Life::Lost)
    }

    /// Children in sync.
    fn online(&self) -> Vec<(usize, Arc<dyn BlockDevice>)> {
        let state = self.state.borrow();
        let online = state.children.iter().enumerate().filter_map(|(place, c)| Some((place, c.as_ref()?)));
        let online = online.filter(|(_, c)| c.state == ChildState::Online);
        online.map(|(place, c)| (place, c.device.clone())).collect()
    }

    /// Writes a page to all children in sync. False when one of them failed, which is told, or there is none. One at a time.
    async fn put_page(self: &Rc<Self>, bits: &Bits) -> bool {
        let online = self.online();
        let mut good = !online.is_empty();
        self.account.borrow_mut().sequence += 1;
        for (place, device) in online {
            good &= self.put_page_to(place, device, bits).await;
        }
        good
    }

    async fn put_page_to(self: &Rc<Self>, place: usize, device: Arc<dyn BlockDevice>, bits: &Bits) -> bool {
        let page = {
            let account = self.account.borrow();
            let region_shift = self.shared.intent.region_shift();
            Page { name: account.name, sequence: account.sequence, region_shift, bits: Box::new(*bits) }
        };
        match self.write_page(place, device, &page).await {
            Ok(()) => true,
            Err(None) => false,
            Err(Some(status)) => {
                self.account.borrow_mut().ends.remove(&place);
                note(&mut self.failures.borrow_mut(), place, status);
                self.look();
                false
            }
        }
    }

    /// An error without a status is a lack of memory, which is no fault of the child's.
    async fn write_page(
        &self,
        place: usize,
        device: Arc<dyn BlockDevice>,
        page: &Page,
    ) -> Result<(), Option<IoStatus>> {
        let open = self.reach(place, device).await?;
        let len = page_len(&open);
        let mut buf = self.core.pools().ok().and_then(|pools| pools.alloc(len)).ok_or(None)?;
        buf[..len as usize].fill(0);
        buf[..PAGE_BYTES].copy_from_slice(&page.encode());
        let at = self.account.borrow().ends.get(&place).map_or(0, |end| end.next);
        let (written, _) = open.write_at_durable(PLACES_BYTES[at], len, buf).await;
        written.map_err(|error| match error {
            IoError::Status(status) => Some(status),
            _ => Some(check::REMOVED),
        })?;
        if let Some(end) = self.account.borrow_mut().ends.get_mut(&place) {
            end.next = 1 - at;
        }
        Ok(())
    }

    /// A child leaves: it is not reached any more.
    pub(super) fn leave_account(&self, place: usize) {
        self.account.borrow_mut().ends.remove(&place);
    }

    /// Takes bits away that stand for nothing any more. Not within a decision, which writes may wait for.
    pub(crate) async fn sweep_account(self: &Rc<Self>) {
        let leavings = self.leavings.get();
        if !self.shared.intent.is_on() || !self.is_at_work() {
            return;
        }
        let untouched = self.shared.intent.untouched();
        if *untouched == NONE {
            return;
        }
        self.passed().await;
        if !self.flush_children().await || self.leavings.get() != leavings || !self.is_at_work() {
            return;
        }
        let one = self.account.borrow().one.clone();
        let _pass = one.enter().await;
        self.shared.intent.take_away(&untouched);
        let bits = self.shared.intent.durable();
        // Where it is not written, bits stay that stand for nothing.
        let _ = self.put_page(&bits).await;
    }

    /// Bits may be taken away.
    fn is_at_work(&self) -> bool {
        self.state.borrow().life == Life::Open && self.all_in_sync()
    }

    /// All children are in sync, and there is none that is not known to this nexus: one that was away when it began.
    fn all_in_sync(&self) -> bool {
        let (state, notes) = (self.state.borrow(), self.notes.borrow());
        let children = state.children.iter().flatten();
        let there = |member: &Uuid| children.clone().any(|c| c.uuid == *member);
        children.clone().all(|c| c.state == ChildState::Online)
            && notes.account().is_some_and(|note| note.members.iter().all(there))
    }

    /// Everything was flushed, and nothing is on its way: children in sync are equal.
    pub(super) async fn close_account(self: &Rc<Self>) {
        if !self.shared.intent.is_on() {
            return;
        }
        let equal = self.all_in_sync();
        let one = self.account.borrow().one.clone();
        let _pass = one.enter().await;
        if equal {
            let _ = self.put_page(&NONE).await;
        }
        self.account.borrow_mut().ends.clear();
    }

    /// The child at `place` is about to be recorded as in sync. False when its page could not be written.
    pub(super) async fn enter_in_account(self: &Rc<Self>, place: usize) -> bool {
        if !self.shared.intent.is_on() {
            return true;
        }
        let child = self.state.borrow().children[place].as_ref().map(|c| (c.uuid, c.device.clone()));
        let Some((uuid, device)) = child else { return false };
        let note = self.notes.borrow().account().cloned();
        if let Some(mut note) = note.filter(|note| !note.members.contains(&uuid)) {
            note.members.insert(uuid);
            self.notes.borrow_mut().set_account(Some(note));
            // Its page must not count when nobody knows that bits stay for it.
            if !self.save_notes().await {
                return false;
            }
        }
        let one = self.account.borrow().one.clone();
        let _pass = one.enter().await;
        self.account.borrow_mut().sequence += 1;
        self.put_page_to(place, device, &ALL).await
    }

    /// What the job's child lacks by the account. False when that does not tell.
    pub(super) async fn by_account(&self, job: &Job, to: Arc<dyn BlockDevice>) -> bool {
        if !self.shared.intent.is_on() {
            return false;
        }
        let Some(page) = self.page_of(job.place, to).await else { return false };
        let shift = self.shared.intent.region_shift();
        if page.name != self.account.borrow().name || page.region_shift != shift {
            return false;
        }
        let mut bits = self.shared.intent.durable();
        bits.iter_mut().zip(&*page.bits).for_each(|(bits, page)| *bits |= page);
        ranges(&bits, shift, self.shared.size()).for_each(|range| job.map.mark(range));
        true
    }
}
