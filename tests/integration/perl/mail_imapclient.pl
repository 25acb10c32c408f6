# Reads a mailbox with Mail::IMAPClient and changes another one; prints what the server said.
#
#     perl mail_imapclient.pl PORT SECURITY CA-FILE USER PASSWORD MECHANISM
use strict;
use warnings;
use Mail::IMAPClient;

my ($port, $security, $ca, $user, $password, $mechanism) = @ARGV;
my @tls = (SSL_ca_file => $ca, SSL_verifycn_scheme => 'imap', SSL_verifycn_name => 'localhost');

my $client = Mail::IMAPClient->new(
    Server => 'localhost',
    Port => $port,
    User => $user,
    Password => $password,
    Uid => 1,
    ($security eq 'tls' ? (Ssl => \@tls) : (Starttls => \@tls)),
    ($mechanism eq 'LOGIN command' ? () : (Authmechanism => $mechanism)),
) or die "cannot log in: $@\n";

sub told {
    my ($what, @values) = @_;
    for my $value (map { defined ? "$_" : 'undef' } @values) {
        $value =~ s/\((?:\d+\.\d+(?: \+ )?)+ secs\)//g;
        print "$what: $value\n";
    }
}

told('capability', sort $client->capability);
told('folder', sort $client->folders);
told('separator', $client->separator);
$client->examine('INBOX') or die $client->LastError;
told('count', $client->message_count);
for my $uid ($client->messages) {
    told('message', $uid, $client->subject($uid), $client->internaldate($uid), $client->size($uid));
    told('text', $client->message_string($uid));
    told('flags', sort $client->flags($uid));
}
told('found', $client->search('SUBJECT', $client->Quote('2')));
$client->close or die $client->LastError;

my $letter = "Subject: from Perl\r\n\r\nHello.\r\n";
$client->create('Perl') or die $client->LastError;
$client->append_string('Perl', $letter, '\\Flagged') or die $client->LastError for 1 .. 2;
$client->select('Perl') or die $client->LastError;
$client->set_flag('Answered', 2) or die $client->LastError;
$client->delete_message(1) or die $client->LastError;
$client->expunge or die $client->LastError;
told('left', $client->messages, sort $client->flags(2));
$client->close or die $client->LastError;
$client->delete('Perl') or die $client->LastError;
told('folder', sort $client->folders);
$client->logout or die 'cannot log out';
