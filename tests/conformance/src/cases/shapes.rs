//! Scatter-gather lists, good and bad.

use aio::devices::prng::Prng;
use aio::{IoStatus, Opcode, SgEntry};

use crate::bench::{Request, World};
use crate::buf::Buf;

/// Cuts `total` bytes into `entries` pieces whose lengths are multiples of `align`, at random.
fn cuts(rng: &mut Prng, total: usize, entries: usize, align: usize) -> Vec<u32> {
    let units = total / align;
    let mut marks: Vec<usize> = Vec::new();
    while marks.len() + 1 < entries {
        let mark = rng.between(1, units as u64 - 1) as usize * align;
        if !marks.contains(&mark) {
            marks.push(mark);
        }
    }
    marks.extend([0, total]);
    marks.sort_unstable();
    marks.windows(2).map(|w| (w[1] - w[0]) as u32).collect()
}

/// Any split that the geometry allows writes and reads the same bytes.
pub(super) fn good_lists(world: &World<'_>) -> bool {
    let mut bench = world.bench();
    let mut rng = Prng::new(world.options.seed);
    let g = bench.geometry;
    let align = g.sg_elem_align.max(g.buf_align) as usize;
    let blocks = u64::from(g.max_blocks.min(8));
    let total = bench.bytes(blocks);
    let most = usize::from(g.max_sg).min(total / align).min(600);
    for entries in [1, 2, 3, 4, 7, 8, 16, 31, 64, 127, 128, 255, 256, most - 1, most] {
        if entries == 0 || entries > most {
            continue;
        }
        let mut bytes = vec![0; total];
        rng.fill(&mut bytes);
        let lba = rng.below(64);
        let (write, read) = (cuts(&mut rng, total, entries, align), cuts(&mut rng, total, entries, align));
        bench.run(Request::new(Opcode::Write, lba, blocks).data(Buf::of(&bytes), &write)).ok();
        let got =
            bench.run(Request::new(Opcode::Read, lba, blocks).data(Buf::filled(total, 0xee), &read)).ok();
        let expected = if world.options.retains_data { bytes } else { vec![0; total] };
        assert!(got == expected, "{entries} entries at block {lba}: written as {write:?}, read as {read:?}");
    }
    // Pieces that are neither in order nor next to each other: each entry is its own memory.
    let half = (total / 2).next_multiple_of(align);
    let swapped = |b: &Buf| vec![b.piece(half, total - half), b.piece(0, half)];
    if usize::from(g.max_sg) >= 2 && (total - half).is_multiple_of(align) {
        let mut bytes = vec![0; total];
        rng.fill(&mut bytes);
        let request = Request::new(Opcode::Write, 0, blocks).data(Buf::of(&bytes), &[]).list(swapped);
        bench.run(request).ok();
        let mut expected = [&bytes[half..], &bytes[..half]].concat();
        if !world.options.retains_data {
            expected.fill(0);
        }
        assert!(bench.read(0, blocks) == expected, "swapped halves");
    }
    true
}

/// Lists that do not fit the length or the geometry are refused, and nothing is written.
pub(super) fn wrong_lists(world: &World<'_>) -> bool {
    let mut bench = world.bench();
    let g = bench.geometry;
    let len = world.block_bytes as usize;
    bench.write(0, &vec![0x11; len]);
    bench.write(1, &vec![0x11; len]);
    let before = bench.read(0, 2);
    let align = g.sg_elem_align.max(g.buf_align) as usize;
    let piece = SgEntry { len_bytes: 0, ..Buf::new(1).list(&[])[0] };
    type Make = Box<dyn Fn(&Buf) -> Vec<SgEntry>>;
    let mut wrong: Vec<(&str, Make)> = vec![
        ("none", Box::new(|_| Vec::new())),
        ("one block too many", Box::new(move |b| vec![b.piece(0, 2 * len)])),
        ("too short", Box::new(move |b| vec![b.piece(0, len - align)])),
        ("too short by a byte", Box::new(move |b| vec![b.piece(0, len - 1)])),
        ("an entry too many", Box::new(move |b| vec![b.piece(0, len), b.piece(len, align)])),
        ("an empty entry", Box::new(move |b| vec![b.piece(0, len), piece])),
        ("huge entries", {
            // Four times 1 GiB is 2^32: the sum has to be taken in more than 32 bits. Nobody may touch it.
            Box::new(move |b| {
                let mut list = vec![SgEntry { len_bytes: 1 << 30, ..b.piece(0, len) }; 4];
                list.push(b.piece(0, len));
                list
            })
        }),
    ];
    if g.sg_elem_align > 1 {
        wrong.push(("an odd entry", Box::new(move |b| vec![b.piece(0, 1), b.piece(4096, len - 1)])));
    }
    if g.buf_align > 1 {
        wrong.push(("an odd address", Box::new(move |b| vec![b.piece(1, len)])));
    }
    let many = usize::from(g.max_sg) + 1;
    if many * align <= len {
        wrong.push((
            "too many entries",
            Box::new(move |b| {
                let mut list: Vec<_> = (0..many).map(|i| b.piece(i * align, align)).collect();
                let rest = len - (many - 1) * align;
                list[many - 1] = b.piece((many - 1) * align, rest);
                list
            }),
        ));
    }
    for (what, make) in wrong {
        for opcode in [Opcode::Write, Opcode::Read] {
            let request = Request::new(opcode, 0, 1).data(Buf::filled(2 * len + 8192, 0x99), &[]).list(&make);
            let done = bench.run(request);
            assert_eq!(
                done.status.code(),
                IoStatus::INVALID_FIELD.code(),
                "{opcode:?} with a list of {what}"
            );
            assert!(done.data.iter().all(|b| *b == 0x99), "{opcode:?} with a list of {what} touched memory");
        }
    }
    assert!(bench.read(0, 2) == before, "a refused write changed the device");
    true
}
