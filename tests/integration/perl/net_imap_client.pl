# Reads a mailbox with Net::IMAP::Client and changes another one; prints what the server said.
#
#     perl net_imap_client.pl PORT SECURITY CA-FILE USER PASSWORD
use strict;
use warnings;
use Net::IMAP::Client;

my ($port, $security, $ca, $user, $password) = @ARGV;

# The library looks for authorities in the system's folder alone.
IO::Socket::SSL::set_args_filter_hack(sub {
    my (undef, $arguments) = @_;
    delete $arguments->{SSL_ca_path};
    $arguments->{SSL_ca_file} = $ca;
});

my $client = Net::IMAP::Client->new(
    server => 'localhost',
    port => $port,
    user => $user,
    pass => $password,
    ($security eq 'tls' ? 'ssl' : 'tls') => 1,
) or die "cannot connect\n";
$client->login or die $client->last_error;

sub told {
    my ($what, @values) = @_;
    print "$what: $_\n" for map { defined ? "$_" : 'undef' } @values;
}

told('capability', sort @{ $client->capability });
told('folder', sort $client->folders);
$client->examine('INBOX') or die $client->last_error;
for my $uid (@{ $client->search('ALL') }) {
    my $summary = $client->get_summaries($uid)->[0];
    told('message', $uid, $summary->subject, $summary->internaldate, $summary->rfc822_size);
    told('text', ${ $client->get_rfc822_body($uid) });
    told('flags', sort @{ $client->get_flags($uid) });
}
told('found', @{ $client->search({ subject => '2' }) });

$client->create_folder('Perl') or die $client->last_error;
$client->append('Perl', \"Subject: from Perl\r\n\r\nHello.\r\n", ['\\Flagged']) or die $client->last_error;
$client->select('Perl') or die $client->last_error;
told('flags', sort @{ $client->get_flags(1) });
$client->delete_message([1]) or die $client->last_error;
$client->expunge or die $client->last_error;
told('left', @{ $client->search('ALL') || [] });
$client->delete_folder('Perl') or die $client->last_error;
$client->logout or die 'cannot log out';
