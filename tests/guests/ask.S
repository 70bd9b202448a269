# Asks the synchronous device for a byte over and over; the latest is at COUNTER + 4.
	.include "guest.inc"
_start:	mark 'R'
	movw $SYNC, %dx
1:	inb %dx, %al
	movb %al, COUNTER + 4
	incl COUNTER
	jmp 1b
