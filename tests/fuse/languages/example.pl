# SPDX-License-Identifier: MIT
use strict;
use warnings;

# MANUAL
sysseek $bar, 0x05, 0; syswrite $bar, pack('C', 0x5a);
sysseek $bar, 0x05, 0; sysread $bar, my $byte, 1;
sysseek $bar, 0x00, 0; syswrite $bar, pack('Q<', 0x0123456789abcdef);
sysseek $bar, 0x00, 0; sysread $bar, my $wide, 8;
printf "%x %x\n", unpack('C', $byte), unpack('Q<', $wide);
