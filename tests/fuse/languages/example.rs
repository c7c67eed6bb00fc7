// SPDX-License-Identifier: MIT
use std::fs::File;
use std::os::unix::fs::FileExt;

fn main() -> std::io::Result<()> {
    // MANUAL
    let mut byte = [0x5a];
    bar.write_all_at(&byte, 0x05)?;
    bar.read_exact_at(&mut byte, 0x05)?;
    let mut wide = 0x0123456789abcdef_u64.to_le_bytes();
    bar.write_all_at(&wide, 0x00)?;
    bar.read_exact_at(&mut wide, 0x00)?;
    println!("{:x} {:x}", byte[0], u64::from_le_bytes(wide));
    Ok(())
}
