//! Deterministic mutations: the same seed gives the same inputs on every machine.

/// A small, fast generator (SplitMix64); its quality is more than enough to pick mutations.
pub struct Rng(u64);

impl Rng {
    /// A generator that is a function of its seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, or 0 when `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { (self.next_u64() % bound as u64) as usize }
    }
}

/// No input grows beyond this; longer ones only take longer.
pub const MAX_LEN_BYTES: usize = 16 << 10;

/// Values at which length and count checks break.
const EDGES: [u64; 16] = [
    0,
    1,
    2,
    3,
    7,
    8,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

/// Changes `input` in one to four places. `other` is a second input to take pieces from.
pub fn mutate(input: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    for _ in 0..=rng.below(4) {
        once(input, other, rng);
    }
    input.truncate(MAX_LEN_BYTES);
}

fn once(input: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    let at = rng.below(input.len());
    match rng.below(9) {
        0 if !input.is_empty() => input[at] ^= 1 << rng.below(8),
        1 if !input.is_empty() => input[at] = rng.next_u64() as u8,
        2 if !input.is_empty() => {
            let width = [1, 2, 4, 8][rng.below(4)];
            let value = EDGES[rng.below(EDGES.len())].to_le_bytes();
            let end = (at + width).min(input.len());
            input[at..end].copy_from_slice(&value[..end - at]);
        }
        3 if !input.is_empty() => {
            // A little more or less than what stands there: lengths off by one.
            input[at] = input[at].wrapping_add([1, 0xff, 4, 0xfc][rng.below(4)]);
        }
        4 => input.truncate(at),
        5 => {
            let end = (at + 1 + rng.below(64)).min(input.len());
            input.drain(at..end);
        }
        6 => {
            let piece: Vec<u8> = input[at..(at + rng.below(256)).min(input.len())].to_vec();
            input.splice(at..at, piece);
        }
        7 => {
            let from = rng.below(other.len());
            let piece = &other[from..(from + rng.below(256)).min(other.len())];
            input.splice(at..at, piece.iter().copied());
        }
        _ => {
            let from = rng.below(other.len());
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_inputs() {
        let run = |seed| {
            let mut rng = Rng::new(seed);
            let mut input = b"a start of some length".to_vec();
            (0..100).for_each(|_| mutate(&mut input, b"another input", &mut rng));
            input
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn inputs_stay_bounded() {
        let mut rng = Rng::new(7);
        let mut input = vec![1; MAX_LEN_BYTES];
        let other = vec![2; MAX_LEN_BYTES];
        for _ in 0..1_000 {
            mutate(&mut input, &other, &mut rng);
            assert!(input.len() <= MAX_LEN_BYTES);
        }
    }
}
