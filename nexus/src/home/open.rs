//! A nexus that there was before: which of its children have every acknowledged write.
//!
//! After an end in order, those that the record calls healthy are equal. After any other, writes that nobody was told of may be
//! on some of them and not on others: hosts that read one and then the other would see a write and lose it again. So one of
//! them is the source and alone serves reads, and the others get what they may lack (hazard H7). Each of them has every
//! acknowledged write, unless it lost power: so rather one of which it is known that it did not (hazard H1).

use std::collections::{BTreeMap, BTreeSet};

use aio::BlockDevice;
use uuid::Uuid;

use crate::layout;
use crate::membership::Record;

/// What a nexus keeps for itself beside the record: incarnations of the children when they were last in sync.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Notes {
    incarnations: BTreeMap<Uuid, u128>,
    /// The account of regions that are being written, if one is kept.
    account: Option<AccountNote>,
}

/// What is noted of the account.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct AccountNote {
    pub(super) name: u128,
    /// Children whose pages count, also when they are away, or not known to this nexus yet: no bit goes without them.
    pub(super) members: BTreeSet<Uuid>,
}

/// What a line of them begins with.
const INCARNATION: &str = "incarnation";
const ACCOUNT: &str = "account";

impl Notes {
    /// From text; lines that say nothing are left out.
    pub(crate) fn parse(text: &str) -> Self {
        let mut notes = Self::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let number = |text| u128::from_str_radix(text, 16).ok();
            match *words {
                [INCARNATION, uuid, incarnation] => {
                    if let (Ok(uuid), Some(number)) = (Uuid::parse_str(uuid), number(incarnation)) {
                        notes.incarnations.insert(uuid, number);
                    }
                }
                [ACCOUNT, name, ref members @ ..] => {
                    // One that cannot be read could be away for ever: then there is no account.
                    let members: Result<_, _> = members.iter().map(|text| Uuid::parse_str(text)).collect();
                    let named = number(name).zip(members.ok());
                    notes.account = named.map(|(name, members)| AccountNote { name, members });
                }
                _ => {}
            }
        }
        notes
    }

    /// As text.
    pub(crate) fn text(&self) -> String {
        let line = |(uuid, number): (&Uuid, &u128)| format!("{INCARNATION} {uuid} {number:032x}\n");
        let account = self.account.iter().map(|note| {
            let members: String = note.members.iter().map(|uuid| format!(" {uuid}")).collect();
            format!("{ACCOUNT} {:032x}{members}\n", note.name)
        });
        self.incarnations.iter().map(line).chain(account).collect()
    }

    /// The account that is kept.
    pub(super) fn account(&self) -> Option<&AccountNote> {
        self.account.as_ref()
    }

    pub(super) fn set_account(&mut self, account: Option<AccountNote>) {
        self.account = account;
    }

    /// A child is in sync.
    pub(crate) fn learn(&mut self, uuid: Uuid, device: &dyn BlockDevice) {
        match device.incarnation() {
            Some(incarnation) => self.incarnations.insert(uuid, incarnation),
            None => self.incarnations.remove(&uuid),
        };
    }

    /// A child has forgotten nothing since it was last in sync.
    fn is_unbroken(&self, uuid: Uuid, device: &dyn BlockDevice) -> bool {
        self.incarnations.get(&uuid).is_some_and(|known| device.incarnation() == Some(*known))
    }
}

/// Which of `children` are in sync, given what was recorded before. `None`: not one of them is. A record that knows none of
/// them is that of another life of the nexus, and says nothing.
pub(crate) fn in_sync(
    children: &[(Uuid, &dyn BlockDevice)],
    before: Option<&Record>,
    notes: &Notes,
) -> Option<Vec<bool>> {
    let known = |record: &&Record| children.iter().any(|(uuid, _)| record.knows(*uuid));
    let Some(before) = before.filter(known) else { return Some(vec![true; children.len()]) };
    let healthy = |uuid: Uuid| before.is_healthy(uuid);
    if before.clean_shutdown {
        let synced: Vec<bool> = children.iter().map(|(uuid, _)| healthy(*uuid)).collect();
        return synced.contains(&true).then_some(synced);
    }
    let candidates = children.iter().enumerate().filter(|(_, (uuid, _))| healthy(*uuid));
    let worse = |(_, (uuid, device)): &(usize, &(Uuid, &dyn BlockDevice))| {
        (!notes.is_unbroken(*uuid, *device), !layout::is_local(*device))
    };
    let (source, _) = candidates.min_by_key(worse)?;
    Some((0..children.len()).map(|at| at == source).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn device(name: &str) -> Arc<dyn BlockDevice> {
        aio::devices::create(&format!("malloc:///{name}?size_mb=1").parse().unwrap()).unwrap()
    }

    #[test]
    fn notes_are_text_and_back() {
        let incarnations = BTreeMap::from([(Uuid::from_u128(7), 9), (Uuid::from_u128(8), u128::MAX)]);
        let account = AccountNote { name: 77, members: BTreeSet::from([Uuid::from_u128(7)]) };
        let notes = Notes { incarnations, account: Some(account) };
        assert_eq!(Notes::parse(&notes.text()), notes);
        let text = format!("something else\nincarnation x 1\n{}incarnation\n\n", notes.text());
        assert_eq!(Notes::parse(&text), notes);
    }

    #[test]
    fn one_child_is_the_source_after_an_end_that_was_not_in_order() {
        let [a, b, c] = [1, 2, 3].map(Uuid::from_u128);
        let devices = [device("open-a"), device("open-b"), device("open-c")];
        let children: Vec<_> = [a, b, c].into_iter().zip(devices.iter().map(|d| &**d)).collect();
        let notes = Notes::default();
        assert_eq!(in_sync(&children, None, &notes), Some(vec![true; 3]), "there was none before");
        let mut record = Record { clean_shutdown: true, ..Record::default() };
        record.add(a, false);
        record.add(b, true);
        record.add(c, true);
        assert_eq!(in_sync(&children, Some(&record), &notes), Some(vec![false, true, true]));
        record.clean_shutdown = false;
        assert_eq!(in_sync(&children, Some(&record), &notes), Some(vec![false, true, false]));
        assert_eq!(in_sync(&children[..1], Some(&record), &notes), None);
        let stranger = (Uuid::from_u128(4), &*devices[0]);
        let beside = [stranger, (b, &*devices[1])];
        assert_eq!(in_sync(&beside, Some(&record), &notes), Some(vec![false, true]));
        assert_eq!(in_sync(&[stranger], Some(&record), &notes), Some(vec![true]), "a record of others");
    }
}
