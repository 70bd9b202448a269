# A kernel that is booted as kernels are (ELF, the Linux 64-bit protocol), and does what its command line says, letter by letter:
#   h  print "hello"                     o  power off by ACPI
#   c  print the command line            r  reset by ACPI
#   e  echo input until a 'q'            k  reset by the keyboard controller
#   FN print N times 256 KiB (N: '0' + it)  t  triple fault
#   b  wait for the power button         u  run what the emulator does not know
#   U  give ring 3 its first pages, as for a process
#   D  write "hello" to the debug console, and how far it is to port 0x80
#   H  print whose guest CPUID says it is: 12 bytes of leaf 0x40000000, 4 of 0x40000001 and 12 of 0x40000100, and a line's end
#   X  until the word at STOP is not 0, write anything to the registers of hotplug and read them, in any width, at any place
#   V  the same with Hyper-V's interrupt controller switched on and asked for this processor's number, which is printed
#   E  put what is in each slot of each PCI segment that firmware tells of at CONFIGURED, 32 words a segment, and print an E
#   aN start N - 1 processors            A  take turns with a second processor at printing, under a lock
# and these, which never end:
#   i  halt, interrupts open             x  exits that wait for the loop
#   s  spin                              n  exits that nobody waits for
#   w  print                             d  ring the doorbell whose address stands at DOORBELL, once it is not 0
#   P  look at what is plugged in, printing + and the slot's letter ('a' is slot 0), and let go of what is asked for, printing -
#   Z  after E, the same in each segment, without printing
#   l  echo input, by interrupts, halting between them
# At the end of the line it halts for good.
	.include "guest.inc"
	.set ZERO_PAGE_RSDP, 0x70
	.set ZERO_PAGE_CMDLINE, 0x228
	.set COM1, 0x3f8
	.set DEBUG_CONSOLE, 0xe9
	.set DEBUG_PORT, 0x80
	.set ACPI, 0x600
	.set GED, 0x604
	.set PM_TIMER, 0x608
	.set SLOTS, 0x800
	.set MODULES, 0xb00
	.set PROCESSORS, 0x1000
	.set STOP, 0x60020
	.set SEGMENTS, 0x60024
	.set CONFIGURED, 0x70000
	.set BASES, 0x7f000		# of the configuration space of each segment
	.set PCI_ADDRESS, 0xcf8
	.set PCI_DATA, 0xcfc
	.set BAR0, 0x10
	.set LAPIC, 0xfee00000
	.set TRAMPOLINE, 0x1000
	.set ARRIVED, 0x60004
	.set TURN, 0x60008
	.set AP_ROLE, 0x6000c
	.set TICKET, 0x60010
	.set PAGE, 0x70000
	.set PAGES_A_PIECE, 64
	.set TURNS, 1000
	.set DOORBELL, 0x60018
	.set IOAPIC, 0xfec00000
	.set COM1_PIN, 4
	.set IDT, 0x80000
	.set VECTOR, 0x40
	.set STACK, 0x8f000
	.set HIGH, 0x90000

	.macro on letter, label
	cmpb $\letter, %al
	je \label
	.endm

_start:	movl ZERO_PAGE_CMDLINE(%rsi), %r15d
	movq ZERO_PAGE_RSDP(%rsi), %r12
	movl %r15d, %r14d
	cld
next:	movb (%r15), %al
	incl %r15d
	on 'h', hello
	on 'c', cmdline
	on 'D', debug
	on 'e', echo
	on 'F', flood
	on 'b', button
	on 'a', processors
	on 'A', turns
	on 'i', idle
	on 's', spin
	on 'w', print_forever
	on 'x', ask_forever
	on 'n', nobody_forever
	on 'd', ring_forever
	on 'l', listen
	on 'o', off
	on 'r', reset
	on 'k', keyboard
	on 't', fault
	on 'u', unknown
	on 'U', user
	on 'H', whose
	on 'P', plug
	on 'E', enumerate
	on 'Z', plug_everywhere
	on 'X', anything
	on 'V', synic
	on ' ', next
	cli
1:	hlt
	jmp 1b

# Print %ecx bytes at %rsi.
print:	movw $COM1, %dx
	rep outsb
	ret

hello:	leaq greeting(%rip), %rsi
	movl $6, %ecx
	call print
	jmp next

debug:	movb $0x41, %al
	outb %al, $DEBUG_PORT
	leaq greeting(%rip), %rsi
	movl $6, %ecx
	movw $DEBUG_CONSOLE, %dx
1:	lodsb
	outb %al, %dx
	decl %ecx
	jnz 1b
	jmp next

cmdline: movl %r14d, %esi
	xorl %ecx, %ecx
1:	incl %ecx
	cmpb $0, (%rsi,%rcx)
	jne 1b
	call print
	jmp next

echo:	movw $COM1 + 5, %dx
	inb %dx, %al
	testb $1, %al
	jz echo
	movw $COM1, %dx
	inb %dx, %al
	outb %al, %dx
	cmpb $'q', %al
	jne echo
	jmp next

flood:	movzbl (%r15), %ebp
	incl %r15d
	subl $'0', %ebp
	imull $PAGES_A_PIECE, %ebp
	movl $PAGE, %edi
1:	movl %edi, %eax
	stosb
	cmpl $PAGE + 4096, %edi
	jne 1b
	xorl %ebx, %ebx
2:	movl %ebx, PAGE
	movl $PAGE, %esi
	movl $4096, %ecx
	call print
	incl %ebx
	cmpl %ebp, %ebx
	jne 2b
	jmp next

button:	movw $GED, %dx
1:	incl COUNTER
	inb %dx, %al
	testb $8, %al
	jz 1b
	jmp next

# INIT and SIPI to all but self; each begins at page TRAMPOLINE.
start_others:
	leaq ap(%rip), %rsi
	movl $TRAMPOLINE, %edi
	movl $(ap_end - ap), %ecx
	rep movsb
	movl $LAPIC, %ebx
	movl $0x1ff, 0xf0(%rbx)
	movl $0x000c4500, 0x300(%rbx)
	movl $0x000c4600 + (TRAMPOLINE >> 12), 0x300(%rbx)
	ret

processors:
	movzbl (%r15), %ebp
	incl %r15d
	subl $'0' + 1, %ebp
	call start_others
1:	cmpl %ebp, ARRIVED
	jne 1b
	put COM1, 'E'
	jmp next

turns:	movl $1, AP_ROLE
	call start_others
	movw $COM1, %dx
1:	movl TURN, %eax
	testb $1, %al
	jnz 1b
	outb %al, %dx
	incl %eax
	movl %eax, TURN
	cmpl $TURNS, %eax
	jb 1b
	jmp next

idle:	sti
1:	hlt
	jmp 1b

spin:	incl COUNTER
	jmp spin

print_forever:
	put COM1, 'w'
	incl COUNTER
	jmp print_forever

ask_forever:
	movw $PM_TIMER, %dx
1:	inl %dx, %eax
	incl COUNTER
	jmp 1b

nobody_forever:
	movw $NOBODY, %dx
1:	outb %al, %dx
	incl COUNTER
	jmp 1b

ring_forever:
	movq %cr3, %rax			# the first 2 MiB above 4 GiB, where BARs begin, are mapped too
	andq $~0xfff, %rax
	movq (%rax), %rax
	andq $~0xfff, %rax
	movq $(HIGH + 3), 32(%rax)
	movq $0x100000083, %rax
	movq %rax, HIGH
1:	movq DOORBELL, %rbx
	testq %rbx, %rbx
	jz 1b
1:	movw $0, (%rbx)
	incl COUNTER
	jmp 1b

# The handler starts the waiting loop over instead of returning.
listen:	lgdt gdtr(%rip)
	leaq heard(%rip), %rax
	movl $(IDT + VECTOR * 16), %edi
	movw %ax, 0(%rdi)
	movw $0x08, 2(%rdi)
	movw $0x8e00, 4(%rdi)		# present, 64-bit interrupt gate
	shrq $16, %rax
	movw %ax, 6(%rdi)
	shrq $16, %rax
	movl %eax, 8(%rdi)
	movl $0, 12(%rdi)
	lidt idtr(%rip)
	movl $LAPIC, %ebx
	movl $0x1ff, 0xf0(%rbx)		# software-enable, spurious vector 0xff
	movl $IOAPIC, %ebp
	movl $(0x10 + 2 * COM1_PIN), (%rbp)
	movl $VECTOR, 0x10(%rbp)	# an edge, to processor 0
	put COM1 + 2, 7			# FIFOs on, and empty
	put COM1 + 4, 8			# OUT2, which joins the interrupt to its line
	put COM1 + 1, 1			# when something has come
listening:
	movl $STACK, %esp
	sti
1:	hlt
	jmp 1b
heard:	movw $COM1 + 5, %dx
1:	inb %dx, %al
	testb $1, %al
	jz 2f
	movw $COM1, %dx
	inb %dx, %al
	outb %al, %dx
	incl COUNTER
	movw $COM1 + 5, %dx
	jmp 1b
2:	movw $COM1 + 2, %dx		# IIR: the interrupt is seen to be over
	inb %dx, %al
	testb $1, %al
	jz heard
	movl $0, 0xb0(%rbx)		# end of interrupt
	jmp listening

	.balign 8
gdt:	.quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdtr:	.word . - gdt - 1
	.quad gdt
idtr:	.word 0xfff
	.quad IDT

off:	put ACPI, 0x34
	put COM1, '!'		# nothing may run after it
	jmp next
reset:	put ACPI, 1
	put COM1, '!'
	jmp next
keyboard:
	put 0x64, 0xfe
	jmp next
fault:	lidt 1f(%rip)
	ud2
1:	.quad 0, 0
unknown: movl $MMIO, %ebx
	popcntl (%rbx), %eax
	jmp next

user:	movq %cr3, %rbx
	movl $3, %ecx			# down to the entry of the first 2 MiB
1:	orq $4, (%rbx)
	movq (%rbx), %rbx
	andq $~0xfff, %rbx
	loop 1b
	movq %cr3, %rbx
	movq %rbx, %cr3
	movw $PM_TIMER, %dx
	inl %dx, %eax
	movl %eax, %ebx
2:	inl %dx, %eax			# the monitor looks at exits, each 100 ms at least (native/src/x86_64/paging.c)
	subl %ebx, %eax
	andl $0xffffff, %eax
	cmpl $(120 * 3580), %eax
	jb 2b
	jmp next

plug:	movw $SLOTS, %dx
	inl %dx, %eax
	movl %eax, %ebp
	xorl %ebx, %ebx
1:	btl %ebx, %ebp
	jnc 2f
	movl %ebx, %eax			# a write to a register, as a kernel sizes BARs
	shll $11, %eax
	orl $(0x80000000 + BAR0), %eax
	movw $PCI_ADDRESS, %dx
	outl %eax, %dx
	movl $-1, %eax
	movw $PCI_DATA, %dx
	outl %eax, %dx
	put COM1, '+'
	leal 'a'(%rbx), %eax
	outb %al, %dx
2:	incl %ebx
	cmpl $32, %ebx
	jne 1b
	movw $(SLOTS + 4), %dx
	inl %dx, %eax
	testl %eax, %eax
	jz plug
	movw $SLOTS, %dx
	outl %eax, %dx
	put COM1, '-'
	jmp plug

enumerate:
	movq 24(%r12), %rax		# the XSDT
	movl 4(%rax), %ecx
	addq %rax, %rcx
	leaq 36(%rax), %rdx
1:	cmpq %rcx, %rdx
	jae next
	movq (%rdx), %rax
	addq $8, %rdx
	cmpl $0x4746434d, (%rax)	# "MCFG"
	jne 1b
	movl 4(%rax), %ecx
	addq %rax, %rcx
	addq $44, %rax
	xorl %ebp, %ebp
	movl $CONFIGURED, %edi
2:	cmpq %rcx, %rax
	jae 4f
	movq (%rax), %rbx
	movq %rbx, BASES(,%rbp,8)
	incl %ebp
	movl $32, %edx
3:	movl (%rbx), %esi
	movl %esi, (%rdi)
	addq $4, %rdi
	addq $0x8000, %rbx
	decl %edx
	jnz 3b
	addq $16, %rax
	jmp 2b
4:	movl %ebp, SEGMENTS
	put COM1, 'E'
	jmp next

plug_everywhere:
	xorl %r8d, %r8d
1:	cmpl SEGMENTS, %r8d
	jae plug_everywhere
	incl COUNTER
	movq BASES(,%r8,8), %rdi
	leal SLOTS(,%r8,8), %edx
	inl %dx, %eax
	movl %eax, %ebp
2:	testl %ebp, %ebp
	jz 3f
	bsfl %ebp, %ebx
	btrl %ebx, %ebp
	shlq $15, %rbx
	movl BAR0(%rdi,%rbx), %ecx	# as a kernel sizes BARs
	movl $-1, BAR0(%rdi,%rbx)
	movl %ecx, BAR0(%rdi,%rbx)
	jmp 2b
3:	leal SLOTS + 4(,%r8,8), %edx
	inl %dx, %eax
	testl %eax, %eax
	jz 4f
	leal SLOTS(,%r8,8), %edx
	outl %eax, %dx
4:	incl %r8d
	jmp 1b

# The state of a xorshift generator (13, 17, 5) is %ebx, of which each decision takes bits of its own.
anything: movl $0x2545f491, %ebx
	leaq hotplug(%rip), %rsi
1:	movl %ebx, %eax
	shll $13, %eax
	xorl %eax, %ebx
	movl %ebx, %eax
	shrl $17, %eax
	xorl %eax, %ebx
	movl %ebx, %eax
	shll $5, %eax
	xorl %eax, %ebx
	movl %ebx, %ecx
	andl $3, %ecx
	movzwl (%rsi,%rcx,2), %edx
	movl %ebx, %eax
	shrl $2, %eax
	andl $15, %eax
	addl %eax, %edx
	movl %ebx, %eax
	rorl $16, %eax
	btl $6, %ebx
	jc 3f
	btl $7, %ebx
	jc 2f
	outb %al, %dx
	inb %dx, %al
	jmp 5f
2:	outw %ax, %dx
	inw %dx, %ax
	jmp 5f
3:	btl $7, %ebx
	jc 4f
	outl %eax, %dx
4:	inl %dx, %eax
5:	incl COUNTER
	cmpl $0, STOP
	je 1b
	jmp next
hotplug: .word SLOTS, MODULES, PROCESSORS, DEBUG_PORT

whose:	movl $0x40000000, %eax
	cpuid
	movl %ebx, PAGE
	movl %ecx, PAGE + 4
	movl %edx, PAGE + 8
	movl $0x40000001, %eax
	cpuid
	movl %eax, PAGE + 12
	movl $0x40000100, %eax
	cpuid
	movl %ebx, PAGE + 16
	movl %ecx, PAGE + 20
	movl %edx, PAGE + 24
	movb $'\n', PAGE + 28
	movl $PAGE, %esi
	movl $29, %ecx
	call print
	jmp next

synic:	xorl %edx, %edx
	movl $1, %eax
	movl $0x40000080, %ecx		# SCONTROL
	wrmsr
	movl $(PAGE + 1), %eax
	movl $0x40000083, %ecx		# SIMP, the page of messages
	wrmsr
	movl $0x40000002, %ecx		# VP_INDEX
	rdmsr
	addb $'0', %al
	movw $COM1, %dx
	outb %al, %dx
	jmp next

greeting: .ascii "hello\n"

# In real mode. The processor's letter is 'a', 'b', ... by its ticket; with AP_ROLE it takes the odd turns.
	.code16
ap:	cli
	movw $0x6000, %ax
	movw %ax, %ds
	movw $COM1, %dx
	cmpb $0, AP_ROLE - 0x60000
	jne 2f
	movl $1, %eax
	lock xaddl %eax, TICKET - 0x60000
	addb $'a', %al
	outb %al, %dx
	lock incl ARRIVED - 0x60000	# after the letter, so that nobody who waits for us is before it
1:	hlt
	jmp 1b
2:	movl TURN - 0x60000, %eax
	testb $1, %al
	jz 2b
	outb %al, %dx
	incl %eax
	movl %eax, TURN - 0x60000
	cmpl $TURNS, %eax
	jb 2b
	jmp 1b
ap_end:
