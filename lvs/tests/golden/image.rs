//! Images of disks as files: what stands in blocks, with words that are repeated said once.
//!
//! ```text
//! "KSgold1\n"   then for each disk
//! u32 block bytes   u64 blocks of the disk   u32 blocks that follow; each of them
//! u64 number   u16 runs; each of them   u16 count   8 bytes that are there so often
//! ```

use crate::harness::disk::{Block, Image};

const MAGIC: &[u8] = b"KSgold1\n";

/// Disks as bytes. Blocks of zeroes are left out.
pub(crate) fn encode(images: &[Image]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    for image in images {
        let blocks: Vec<_> =
            image.blocks.iter().filter(|(_, block)| block.bytes().iter().any(|b| *b != 0)).collect();
        out.extend(image.block_bytes.to_le_bytes());
        out.extend(image.len_blocks.to_le_bytes());
        out.extend((blocks.len() as u32).to_le_bytes());
        for (number, block) in blocks {
            let mut runs: Vec<(u16, &[u8])> = Vec::new();
            for word in block.bytes().chunks_exact(8) {
                match runs.last_mut() {
                    Some((count, last)) if *last == word => *count += 1,
                    _ => runs.push((1, word)),
                }
            }
            out.extend(number.to_le_bytes());
            out.extend((runs.len() as u16).to_le_bytes());
            for (count, word) in runs {
                out.extend(count.to_le_bytes());
                out.extend(word);
            }
        }
    }
    out
}

/// The disks.
pub(crate) fn decode(bytes: &[u8]) -> Vec<Image> {
    let mut rest = bytes.strip_prefix(MAGIC).expect("an image of disks");
    let mut images = Vec::new();
    while !rest.is_empty() {
        let block_bytes = u32::from_le_bytes(take(&mut rest));
        let len_blocks = u64::from_le_bytes(take(&mut rest));
        let mut image = Image { block_bytes, len_blocks, ..Image::default() };
        for _ in 0..u32::from_le_bytes(take(&mut rest)) {
            let number = u64::from_le_bytes(take(&mut rest));
            let mut block = Vec::with_capacity(block_bytes as usize);
            for _ in 0..u16::from_le_bytes(take(&mut rest)) {
                let count = u16::from_le_bytes(take(&mut rest));
                let word: [u8; 8] = take(&mut rest);
                (0..count).for_each(|_| block.extend(word));
            }
            assert_eq!(block.len(), block_bytes as usize, "block {number}");
            image.put(number, &[Block::new(&block)]);
        }
        images.push(image);
    }
    images
}

fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (first, behind) = rest.split_first_chunk().expect("an image of disks that is whole");
    *rest = behind;
    *first
}

#[test]
fn an_image_comes_back() {
    let mut image = Image::empty(512, 1);
    image.put(5, &[Block::new(&[7; 512])]);
    let odd: Vec<u8> = (0..512).map(|n| n as u8).collect();
    image.put(9, &[Block::new(&odd), Block::new(&[0; 512])]);
    let decoded = decode(&encode(&[image.clone(), Image::empty(4096, 2)]));
    assert_eq!((decoded.len(), decoded[1].len_blocks, decoded[0].blocks.len()), (2, 512, 2));
    assert!((0..20).all(|at| decoded[0].bytes(at) == image.bytes(at)));
}
