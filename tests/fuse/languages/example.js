// SPDX-License-Identifier: MIT
// MANUAL
const byte = Buffer.from([0x5a]), wide = Buffer.alloc(8);
fs.writeSync(fd, byte, 0, 1, 0x05);
fs.readSync(fd, byte, 0, 1, 0x05);
wide.writeBigUInt64LE(0x0123456789abcdefn);
fs.writeSync(fd, wide, 0, 8, 0x00);
fs.readSync(fd, wide, 0, 8, 0x00);
console.log(byte.toString('hex'), wide.readBigUInt64LE().toString(16));
