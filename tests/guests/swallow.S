# String instructions as long as they get: reads of the synchronous port to low memory, a megabyte at a time.
	.include "guest.inc"
_start:	mark 'R'
	cld
	movw $SYNC, %dx
1:	movl $0x100000, %edi
	movl $0x80000, %ecx
	rep insb
	jmp 1b
