//! Generates the link's and the device's types with `protox`, so that no `protoc` has to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=link.proto");
    println!("cargo:rerun-if-changed=device.proto");
    let descriptors = protox::compile(["link.proto", "device.proto"], ["."])?;
    prost_build::Config::new()
        .bytes(["."])
        .skip_debug([".holdfast.link.v1.Challenge"])
        .compile_fds(descriptors)?;
    Ok(())
}
