//! An ordered map with all its memory taken at construction: a B+tree whose nodes stand in two arenas and are linked
//! by index. It never allocates afterwards and is emptied in constant time.
//!
//! Whatever the order of keys, a node that is less than half full has no such neighbour under its parent: nodes are joined
//! after a removal when two neighbours fit in one, are cut in the middle, and a new node of one entry is made only between a
//! full one and one that is at least half full. So nodes are a quarter full on average at the least, by which the arenas are
//! sized: room that was promised is there.

use core::cmp::Ordering;

/// Entries of a leaf: a shift of half of them costs about what a missed cache line does.
const LEAF: usize = 32;
/// Children of an inner node: two inner levels serve 64 k entries.
const INNER: usize = 64;
/// Levels above the leaves: more than `u32::MAX` entries could need.
const LEVELS: usize = 8;
const NIL: u32 = u32::MAX;

/// (line ascending, block ascending, birth descending).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(Rust, packed(4))]
pub(super) struct Key {
    line: u32,
    block: u64,
    /// Complement of the birth: the newest version of a block comes first.
    age: u64,
}

impl Key {
    pub(super) const fn new(line: u32, block: u64, birth: u64) -> Self {
        Self { line, block, age: !birth }
    }

    pub(super) const fn line(self) -> u32 {
        self.line
    }

    pub(super) const fn block(self) -> u64 {
        self.block
    }

    pub(super) const fn birth(self) -> u64 {
        !self.age
    }

    /// True when both are versions of one block.
    pub(super) const fn same_block(self, other: Self) -> bool {
        self.line == other.line && self.block == other.block
    }

    const fn place(self) -> u128 {
        (self.line as u128) << 64 | self.block as u128
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        let (a, b) = (*self, *other);
        a.place().cmp(&b.place()).then_with(|| {
            let (x, y) = (a.age, b.age);
            x.cmp(&y)
        })
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What a key stands for: two words that only the delta understands.
pub(super) type Value = [u64; 2];

struct Leaf {
    len: u32,
    /// The leaf to the right; in the free list, the next free one.
    next: u32,
    keys: [Key; LEAF],
    values: [Value; LEAF],
}

struct Inner {
    len: u32,
    /// `keys[i]` is at most the lowest key below `children[i]` and above all below `children[i - 1]`; `keys[0]` is not used.
    keys: [Key; INNER],
    children: [u32; INNER],
}

/// Where an entry is. Good until the map is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    leaf: u32,
    pos: u32,
}

/// The inner nodes above a leaf, root first, each with the child that was taken.
struct Path {
    steps: [(u32, u32); LEVELS],
}

/// The map. See the module.
pub(super) struct Ordered {
    leaves: Vec<Leaf>,
    inners: Vec<Inner>,
    free_leaf: u32,
    free_inner: u32,
    leaves_free: usize,
    inners_free: usize,
    root: u32,
    /// Inner levels above the leaves.
    height: usize,
    len: usize,
    capacity: usize,
}

const ZERO: Key = Key { line: 0, block: 0, age: 0 };

impl Ordered {
    /// Room for `capacity` entries. The memory is reserved here and becomes resident as it is used.
    pub(super) fn with_capacity(capacity: usize) -> Self {
        let leaves = capacity / (LEAF / 4) + capacity / 256 + 64;
        let inners = leaves / (INNER / 4) + 64;
        let mut map = Self {
            leaves: Vec::with_capacity(leaves),
            inners: Vec::with_capacity(inners),
            free_leaf: NIL,
            free_inner: NIL,
            leaves_free: leaves,
            inners_free: inners,
            root: NIL,
            height: 0,
            len: 0,
            capacity,
        };
        map.clear();
        map
    }

    /// Forgets all entries.
    pub(super) fn clear(&mut self) {
        self.leaves.clear();
        self.inners.clear();
        (self.free_leaf, self.free_inner) = (NIL, NIL);
        (self.leaves_free, self.inners_free) = (self.leaves.capacity(), self.inners.capacity());
        (self.height, self.len) = (0, 0);
        self.root = self.new_leaf();
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Entries that can still be inserted, whatever their keys.
    pub(super) fn room(&self) -> usize {
        // An insert takes at most one leaf and one inner node a level. That they run out first is excluded: see the module.
        if self.leaves_free < 2 || self.inners_free < LEVELS { 0 } else { self.capacity - self.len }
    }

    /// The first entry at or after `key`.
    pub(super) fn seek(&self, key: Key) -> Cursor {
        let mut node = self.root;
        for _ in 0..self.height {
            let inner = &self.inners[node as usize];
            node = inner.children[inner.child_of(key)];
        }
        Cursor { leaf: node, pos: self.leaves[node as usize].position(key) as u32 }
    }

    /// The entry at `cursor`, or the first one after it when it stands behind the last of a leaf.
    pub(super) fn get(&self, cursor: &mut Cursor) -> Option<(Key, Value)> {
        loop {
            let leaf = &self.leaves[cursor.leaf as usize];
            let pos = cursor.pos as usize;
            if pos < leaf.len as usize {
                return Some((leaf.keys[pos], leaf.values[pos]));
            }
            if leaf.next == NIL {
                return None;
            }
            *cursor = Cursor { leaf: leaf.next, pos: 0 };
        }
    }

    /// The entry at `cursor`, which then stands behind it.
    pub(super) fn next(&self, cursor: &mut Cursor) -> Option<(Key, Value)> {
        let found = self.get(cursor);
        if found.is_some() {
            cursor.pos += 1;
        }
        found
    }

    /// The value of exactly `key`.
    pub(super) fn find(&self, key: Key) -> Option<Value> {
        let mut at = self.seek(key);
        self.get(&mut at).filter(|found| found.0 == key).map(|found| found.1)
    }

    /// Replaces the value at a cursor that `get` just returned an entry for.
    pub(super) fn set(&mut self, cursor: Cursor, value: Value) {
        self.leaves[cursor.leaf as usize].values[cursor.pos as usize] = value;
    }

    /// Replaces key and value at `cursor`, as returned by `seek(low)` and not moved since, by `key`, with
    /// `low <= key <= ` what is there. So the separators above stay true.
    pub(super) fn replace(&mut self, cursor: Cursor, key: Key, value: Value) {
        let leaf = &mut self.leaves[cursor.leaf as usize];
        debug_assert!(key <= leaf.keys[cursor.pos as usize], "order is kept");
        leaf.keys[cursor.pos as usize] = key;
        leaf.values[cursor.pos as usize] = value;
    }

    /// Inserts a key that is not there. False, and nothing done, when there is no room.
    pub(super) fn insert(&mut self, key: Key, value: Value) -> bool {
        if self.room() == 0 {
            return false;
        }
        let (path, leaf) = self.descend(key);
        let pos = self.leaves[leaf as usize].position(key);
        self.len += 1;
        if (self.leaves[leaf as usize].len as usize) < LEAF {
            self.leaves[leaf as usize].insert(pos, key, value);
            return true;
        }
        if pos == LEAF && self.insert_right(&path, leaf, key, value) {
            return true;
        }
        // Ascending keys leave full leaves behind; others are cut in the middle.
        let cut = if pos == LEAF { LEAF } else { LEAF / 2 };
        let right = self.split_leaf(leaf, cut);
        if pos < cut {
            self.leaves[leaf as usize].insert(pos, key, value);
        } else {
            self.leaves[right as usize].insert(pos - cut, key, value);
        }
        let separator = self.leaves[right as usize].keys[0];
        self.link(&path, separator, right);
        true
    }

    /// Puts a key that comes behind all of a full leaf in front of the next leaf, if that is less than half full. Otherwise keys
    /// that descend towards the full one would get a leaf each.
    fn insert_right(&mut self, path: &Path, leaf: u32, key: Key, value: Value) -> bool {
        let next = self.leaves[leaf as usize].next;
        if next == NIL || self.leaves[next as usize].len as usize >= LEAF / 2 {
            return false;
        }
        self.leaves[next as usize].insert(0, key, value);
        // Both are below this node, and below neighbours of it.
        for &(node, taken) in path.steps[..self.height].iter().rev() {
            let inner = &mut self.inners[node as usize];
            if taken + 1 < inner.len {
                inner.keys[taken as usize + 1] = key;
                break;
            }
        }
        true
    }

    /// [`insert`](Self::insert) of a key that comes right before what is at `cursor`, as returned by `seek(low)` and not moved since, with
    /// `low <= key`: mostly without another search.
    pub(super) fn insert_at(&mut self, cursor: Cursor, key: Key, value: Value) -> bool {
        let room = self.room() > 0;
        let leaf = &mut self.leaves[cursor.leaf as usize];
        let (pos, len) = (cursor.pos as usize, leaf.len as usize);
        // Behind the last entry of a leaf the key may belong to the next one: a separator may lie between `low` and `key`.
        if !room || len == LEAF || (pos == len && leaf.next != NIL) {
            return self.insert(key, value);
        }
        debug_assert!(pos == len || key < leaf.keys[pos], "order is kept");
        leaf.insert(pos, key, value);
        self.len += 1;
        true
    }

    /// Removes `key`; its value when it was there.
    pub(super) fn remove(&mut self, key: Key) -> Option<Value> {
        let (path, node) = self.descend(key);
        let leaf = &mut self.leaves[node as usize];
        let pos = leaf.position(key);
        if pos >= leaf.len as usize || leaf.keys[pos] != key {
            return None;
        }
        let value = leaf.values[pos];
        leaf.remove(pos);
        self.len -= 1;
        self.join_up(&path);
        Some(value)
    }

    fn descend(&self, key: Key) -> (Path, u32) {
        let mut path = Path { steps: [(NIL, 0); LEVELS] };
        let mut node = self.root;
        for step in &mut path.steps[..self.height] {
            let inner = &self.inners[node as usize];
            let child = inner.child_of(key);
            *step = (node, child as u32);
            node = inner.children[child];
        }
        (path, node)
    }

    /// Adds `child`, whose keys begin at `separator`, right of the child that `path` took; splits upwards as needed.
    fn link(&mut self, path: &Path, mut separator: Key, mut child: u32) {
        for level in (0..self.height).rev() {
            let (node, taken) = path.steps[level];
            let pos = taken as usize + 1;
            if (self.inners[node as usize].len as usize) < INNER {
                self.inners[node as usize].insert(pos, separator, child);
                return;
            }
            // What grows at the end of the map leaves full nodes behind; others are cut in the middle.
            let last = |&(node, taken): &(u32, u32)| taken + 1 == self.inners[node as usize].len;
            let at_end = path.steps[..=level].iter().all(last);
            let cut = if at_end { INNER } else { INNER / 2 };
            let right = self.split_inner(node, cut);
            // A child in front of the right half belongs to the left one, so that the right one's first is never new.
            if pos < cut || (pos == cut && cut < INNER) {
                self.inners[node as usize].insert(pos, separator, child);
            } else {
                self.inners[right as usize].insert(pos - cut, separator, child);
            }
            separator = self.inners[right as usize].keys[0];
            child = right;
        }
        let root = self.new_inner();
        let inner = &mut self.inners[root as usize];
        inner.insert(0, ZERO, self.root);
        inner.insert(1, separator, child);
        self.root = root;
        self.height += 1;
    }

    fn split_leaf(&mut self, node: u32, cut: usize) -> u32 {
        let right = self.new_leaf();
        let (left, fresh) = two(&mut self.leaves, node, right);
        let moved = left.len as usize - cut;
        fresh.keys[..moved].copy_from_slice(&left.keys[cut..cut + moved]);
        fresh.values[..moved].copy_from_slice(&left.values[cut..cut + moved]);
        fresh.len = moved as u32;
        fresh.next = left.next;
        left.len = cut as u32;
        left.next = right;
        right
    }

    fn split_inner(&mut self, node: u32, cut: usize) -> u32 {
        let right = self.new_inner();
        let (left, fresh) = two(&mut self.inners, node, right);
        let moved = left.len as usize - cut;
        fresh.keys[..moved].copy_from_slice(&left.keys[cut..cut + moved]);
        fresh.children[..moved].copy_from_slice(&left.children[cut..cut + moved]);
        fresh.len = moved as u32;
        left.len = cut as u32;
        right
    }

    /// After a removal below `path`: joins what fits in one node, upwards.
    fn join_up(&mut self, path: &Path) {
        for level in (0..self.height).rev() {
            let (node, taken) = path.steps[level];
            let parent = &self.inners[node as usize];
            let (taken, len) = (taken as usize, parent.len as usize);
            let leaf_level = level + 1 == self.height;
            let joins = |this: &Self, left: usize| {
                let children = &this.inners[node as usize].children;
                this.fits(leaf_level, children[left], children[left + 1])
            };
            let left = if taken + 1 < len && joins(self, taken) {
                taken
            } else if taken > 0 && joins(self, taken - 1) {
                taken - 1
            } else {
                break;
            };
            self.join(node, left, leaf_level);
        }
        while self.height > 0 && self.inners[self.root as usize].len == 1 {
            let old = self.root;
            self.root = self.inners[old as usize].children[0];
            self.height -= 1;
            self.free_inner_node(old);
        }
    }

    fn fits(&self, leaves: bool, a: u32, b: u32) -> bool {
        if leaves {
            (self.leaves[a as usize].len + self.leaves[b as usize].len) as usize <= LEAF
        } else {
            (self.inners[a as usize].len + self.inners[b as usize].len) as usize <= INNER
        }
    }

    /// Joins child `left` of `parent` with the one right of it.
    fn join(&mut self, parent: u32, left: usize, leaves: bool) {
        let inner = &mut self.inners[parent as usize];
        let (a, b, separator) = (inner.children[left], inner.children[left + 1], inner.keys[left + 1]);
        inner.remove(left + 1);
        if leaves {
            let (into, from) = two(&mut self.leaves, a, b);
            let (at, more) = (into.len as usize, from.len as usize);
            into.keys[at..at + more].copy_from_slice(&from.keys[..more]);
            into.values[at..at + more].copy_from_slice(&from.values[..more]);
            into.len += from.len;
            into.next = from.next;
            from.next = self.free_leaf;
            self.free_leaf = b;
            self.leaves_free += 1;
        } else {
            let (into, from) = two(&mut self.inners, a, b);
            let (at, more) = (into.len as usize, from.len as usize);
            from.keys[0] = separator;
            into.keys[at..at + more].copy_from_slice(&from.keys[..more]);
            into.children[at..at + more].copy_from_slice(&from.children[..more]);
            into.len += from.len;
            self.free_inner_node(b);
        }
    }

    fn new_leaf(&mut self) -> u32 {
        self.leaves_free -= 1;
        if self.free_leaf != NIL {
            let node = self.free_leaf;
            let leaf = &mut self.leaves[node as usize];
            self.free_leaf = leaf.next;
            (leaf.len, leaf.next) = (0, NIL);
            return node;
        }
        self.leaves.push(Leaf { len: 0, next: NIL, keys: [ZERO; LEAF], values: [[0; 2]; LEAF] });
        (self.leaves.len() - 1) as u32
    }

    fn new_inner(&mut self) -> u32 {
        self.inners_free -= 1;
        if self.free_inner != NIL {
            let node = self.free_inner;
            let inner = &mut self.inners[node as usize];
            self.free_inner = inner.children[0];
            inner.len = 0;
            return node;
        }
        self.inners.push(Inner { len: 0, keys: [ZERO; INNER], children: [NIL; INNER] });
        (self.inners.len() - 1) as u32
    }

    fn free_inner_node(&mut self, node: u32) {
        self.inners[node as usize].children[0] = self.free_inner;
        self.free_inner = node;
        self.inners_free += 1;
    }
}

impl Leaf {
    /// Index of the first key at or after `key`.
    fn position(&self, key: Key) -> usize {
        self.keys[..self.len as usize].partition_point(|&k| k < key)
    }

    fn insert(&mut self, pos: usize, key: Key, value: Value) {
        let len = self.len as usize;
        self.keys.copy_within(pos..len, pos + 1);
        self.values.copy_within(pos..len, pos + 1);
        self.keys[pos] = key;
        self.values[pos] = value;
        self.len += 1;
    }

    fn remove(&mut self, pos: usize) {
        let len = self.len as usize;
        self.keys.copy_within(pos + 1..len, pos);
        self.values.copy_within(pos + 1..len, pos);
        self.len -= 1;
    }
}

impl Inner {
    /// Index of the child that holds `key` if any does.
    fn child_of(&self, key: Key) -> usize {
        self.keys[1..self.len as usize].partition_point(|&k| k <= key)
    }

    fn insert(&mut self, pos: usize, key: Key, child: u32) {
        let len = self.len as usize;
        self.keys.copy_within(pos..len, pos + 1);
        self.children.copy_within(pos..len, pos + 1);
        self.keys[pos] = key;
        self.children[pos] = child;
        self.len += 1;
    }

    fn remove(&mut self, pos: usize) {
        let len = self.len as usize;
        self.keys.copy_within(pos + 1..len, pos);
        self.children.copy_within(pos + 1..len, pos);
        self.len -= 1;
    }
}

/// Two different nodes of one arena.
fn two<T>(arena: &mut [T], a: u32, b: u32) -> (&mut T, &mut T) {
    let (a, b) = (a as usize, b as usize);
    if a < b {
        let (low, high) = arena.split_at_mut(b);
        (&mut low[a], &mut high[0])
    } else {
        let (low, high) = arena.split_at_mut(a);
        (&mut high[0], &mut low[b])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::testing::Rng;
    use std::collections::BTreeMap;

    fn all(map: &Ordered) -> Vec<(Key, Value)> {
        let mut at = map.seek(ZERO);
        core::iter::from_fn(|| map.next(&mut at)).collect()
    }

    #[test]
    fn it_is_a_sorted_map_under_any_mix_of_inserts_and_removals() {
        for seed in 1..12 {
            let mut rng = Rng::new(seed);
            let mut next = |below| rng.below(below);
            let mut map = Ordered::with_capacity(4096);
            let mut model = BTreeMap::new();
            let spread = [40, 900, 1 << 40][seed as usize % 3];
            for step in 0..30_000u64 {
                let key = Key::new(next(3) as u32, next(spread), next(5));
                let growing = (step / 6000) % 2 == 0;
                if next(10) < if growing { 8 } else { 2 } {
                    if !model.contains_key(&key) && model.len() < 4096 {
                        let first = map.seek(Key::new(key.line(), key.block(), u64::MAX));
                        let taken = map.get(&mut first.clone()).is_some_and(|(found, _)| found < key);
                        // Removals leave separators behind that lie between both.
                        assert!(match taken {
                            true => map.insert(key, [step, 0]),
                            false => map.insert_at(first, key, [step, 0]),
                        });
                        model.insert(key, [step, 0]);
                    }
                } else {
                    // Mostly something that is there.
                    let key = model.range(key..).next().map_or(key, |(k, _)| *k);
                    assert_eq!(map.remove(key), model.remove(&key));
                }
                assert_eq!(map.find(key), model.get(&key).copied());
                if step % 1000 == 0 {
                    assert_eq!(all(&map), model.iter().map(|(k, v)| (*k, *v)).collect::<Vec<_>>());
                }
            }
            assert_eq!(map.len(), model.len());
            map.clear();
            assert!(all(&map).is_empty() && map.room() == 4096);
        }
    }

    /// Room that ended long before it was used up: a key in the gap behind a full leaf made a leaf of its own, and so did the
    /// next one below it. What writes in flight were to put there was lost.
    #[test]
    fn room_that_is_there_can_be_used_whatever_the_order() {
        for stride in [1, 2, 7, 31, 32, 33, 64, 100, 1000] {
            let capacity = 20_000;
            let mut map = Ordered::with_capacity(capacity);
            let mut taken = 0;
            'all: for group in 0.. {
                // A leaf that fills, then keys behind it, backwards, up to the next group.
                let base = group * 10_000;
                let up = (0..32).map(|i| base + i);
                let down = (0..stride).map(|i| base + 5_000 - i);
                for key in up.chain(down) {
                    if map.room() == 0 {
                        break 'all;
                    }
                    assert!(map.insert(Key::new(0, key, 0), [0; 2]));
                    taken += 1;
                }
            }
            assert_eq!(taken, capacity, "stride {stride}");
        }
    }

    /// The same against somebody who sees the nodes, and wants them to be as empty as can be.
    #[test]
    fn room_that_is_there_can_be_used_by_whoever_knows_the_nodes() {
        const CAPACITY: usize = 40_000;
        let key_of = |at: u128| Key::new((at >> 64) as u32, at as u64, 0);
        for seed in 0..4 {
            let (mut map, mut model) = (Ordered::with_capacity(CAPACITY), BTreeMap::new());
            let mut rng = Rng::new(seed);
            let mut emptiest = LEAF as f64;
            for step in 0..600_000u64 {
                let near = u128::from(rng.below(1 << 32)) << 64 | u128::from(rng.below(u64::MAX));
                let (_, node) = map.descend(key_of(near));
                let leaf = &map.leaves[node as usize];
                let (len, next) = (leaf.len as usize, leaf.next);
                let place = |i: usize| leaf.keys[i].place();
                let behind = if next == NIL { 1 << 96 } else { map.leaves[next as usize].keys[0].place() };
                let sparse = next != NIL && (map.leaves[next as usize].len as usize) < LEAF / 2;
                let at = match len {
                    LEAF if seed % 2 == 1 && rng.below(8) == 0 => {
                        // All but one of them go, as long as that joins nothing.
                        let (keys, free) = (leaf.keys, map.leaves_free);
                        for key in &keys[1..] {
                            assert_eq!(map.remove(*key), model.remove(key));
                            if map.leaves_free != free {
                                break;
                            }
                        }
                        continue;
                    }
                    LEAF if !sparse => place(LEAF - 1) / 2 + behind / 2,
                    17..=LEAF => place(len / 2) / 2 + place(len / 2 + 1) / 2,
                    _ if model.len() < 200 || rng.below(64) == 0 => near,
                    _ => continue,
                };
                let key = key_of(at);
                if model.len() < CAPACITY && !model.contains_key(&key) {
                    assert!(map.insert(key, [step, 0]), "seed {seed}: {} entries", model.len());
                    model.insert(key, [step, 0]);
                }
                let used = CAPACITY / (LEAF / 4) + CAPACITY / 256 + 64 - map.leaves_free;
                if model.len() > CAPACITY / 2 {
                    emptiest = emptiest.min(model.len() as f64 / used as f64);
                }
            }
            assert_eq!(all(&map), model.into_iter().collect::<Vec<_>>());
            assert!((8.5..16.0).contains(&emptiest), "seed {seed}: {emptiest} entries a leaf");
        }
    }

    #[test]
    fn the_arenas_last_for_all_entries_in_the_worst_orders() {
        let capacity = 20_000;
        // Ascending, descending, many ascending streams (each leaves a leaf with one entry), and scattered.
        let orders: [fn(u64) -> u64; 4] = [
            |i| i,
            |i| u64::MAX - i,
            |i| ((i % 600) << 32) + i / 600,
            |i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        ];
        for order in orders {
            let mut map = Ordered::with_capacity(capacity);
            let before = (map.leaves.capacity(), map.inners.capacity());
            for round in 0..3 {
                for i in 0..capacity as u64 {
                    if map.find(Key::new(0, order(i), 0)).is_none() {
                        assert!(map.insert(Key::new(0, order(i), 0), [i, 0]), "entry {i} of round {round}");
                    }
                }
                assert_eq!(map.room(), 0);
                for i in (0..capacity as u64).filter(|i| i % 7 != round) {
                    assert!(map.remove(Key::new(0, order(i), 0)).is_some());
                }
            }
            assert_eq!(before, (map.leaves.capacity(), map.inners.capacity()), "nothing is allocated");
        }
    }
}
