# Memory above 4 GiB: stores a pattern at 4 GiB + 4 KiB and copies what it finds at 4 GiB + 8 KiB to low memory.
	.include "guest.inc"
_start:	movabsq $0x100001000, %rbx
	movabsq $0x1122334455667788, %rax
	movq %rax, (%rbx)
	movq 0x1000(%rbx), %rax
	movq %rax, COUNTER
	mark 'E'
1:	hlt
	jmp 1b
