//! Links the addon as N-API modules are.
fn main() {
    napi_build::setup();
}
