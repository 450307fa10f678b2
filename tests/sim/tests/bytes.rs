//! The simulated network keeps its promises, over many seeds (`KEELSON_SEEDS`, `KEELSON_SEED`).

#[test]
fn bytes_arrive_in_order_and_whole() {
    sim::seeds::check(&sim::scenarios::bytes::SCENARIO, 300);
}
