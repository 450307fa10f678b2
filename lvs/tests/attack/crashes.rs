//! Every moment of a scenario as a power cut. Here moments and survivors are drawn; `cargo xtask soak` tries more of them,
//! and `KEELSON_LVS_CUTS=all` every moment with every subset of up to ten writes that are not durable, and 10,000 of those of
//! more: that takes seconds for `cuts_in_a_brief_life`, minutes for `cuts_after_a_burst`, and hours for others.

use crate::harness::crash::Budget;
use crate::harness::scenes::cut;
use crate::seeds;

fn budget() -> Budget {
    match std::env::var("KEELSON_LVS_CUTS") {
        Ok(all) if all == "all" => {
            Budget { all_subsets_of: 10, per_cut: 10_000, moments: 0, deep: 50, nested: 2000, check: 10 }
        }
        _ => Budget { all_subsets_of: 2, per_cut: 3, moments: 24, deep: 16, nested: 40, check: 3 },
    }
}

fn cuts(scene: &'static str) {
    seeds(1, |seed| {
        let tried = cut(scene, seed, budget()).unwrap();
        println!("{scene}, seed {seed}: {tried:?}");
        assert!(tried.imports >= 10, "{scene}, seed {seed}: next to nothing was cut: {tried:?}");
    });
}

#[test]
fn cuts_between_writes() {
    cuts("writes");
}

#[test]
fn cuts_between_writes_that_meet() {
    cuts("overlaps");
}

#[test]
fn cuts_while_snapshots_come_and_go() {
    cuts("snapshots");
}

#[test]
fn cuts_while_clones_come_and_go() {
    cuts("clones");
}

#[test]
fn cuts_while_volumes_come_and_go() {
    cuts("volumes");
}

#[test]
fn cuts_while_volumes_change_their_size() {
    cuts("resizes");
}

#[test]
fn cuts_while_the_cleaner_works() {
    cuts("cleaning");
}

#[test]
fn cuts_while_a_pool_grows() {
    cuts("grow");
}

#[test]
fn cuts_while_everything_happens() {
    cuts("all");
}

/// H18: at 100 % full, with snapshots that come and go.
#[test]
fn h18_cuts_while_a_pool_is_full() {
    cuts("full");
}

#[test]
fn cuts_while_disks_join_and_leave() {
    cuts("disks");
}

#[test]
fn cuts_while_a_pool_is_exported_and_imported() {
    cuts("exports");
}

#[test]
fn cuts_in_a_brief_life() {
    cuts("brief");
}

#[test]
fn cuts_after_a_burst_of_writes() {
    cuts("burst");
}
