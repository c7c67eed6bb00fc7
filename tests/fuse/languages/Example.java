// SPDX-License-Identifier: MIT
import static java.nio.ByteOrder.LITTLE_ENDIAN;
import static java.nio.file.StandardOpenOption.READ;
import static java.nio.file.StandardOpenOption.WRITE;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Path;

class Example {
    public static void main(String[] arguments) throws IOException {
        // MANUAL
        var one = ByteBuffer.allocate(1).put(0, (byte) 0x5a);
        bar.write(one, 0x05);
        bar.read(one.rewind(), 0x05);
        var wide = ByteBuffer.allocate(8).order(LITTLE_ENDIAN).putLong(0, 0x0123456789abcdefL);
        bar.write(wide, 0x00);
        bar.read(wide.rewind(), 0x00);
        System.out.printf("%x %x%n", one.get(0), wide.getLong(0));
    }
}
