# Writes to the port of which only dwords are posted: one, then a word and a byte, then a dword that begins behind it.
	.include "guest.inc"
_start:	movw $DWORD, %dx
	movl $0x44332211, %eax
	outl %eax, %dx
	outw %ax, %dx
	outb %al, %dx
	incw %dx
	outl %eax, %dx
	mark 'E'
1:	hlt
	jmp 1b
