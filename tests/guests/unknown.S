# An instruction that KVM's emulator does not know, on memory that only the emulator can reach.
	.include "guest.inc"
_start:	movl $MMIO, %ebx
	popcntl (%rbx), %eax
